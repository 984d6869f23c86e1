"""What is no path is one error wherever a path is given."""

import jaxtyping
import pytest

from ames_jax import Searcher, load_model
from ames_jax.data.store import open_store
from ames_jax.index.database_index import DatabaseIndex
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.paths import absolute, path_of


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["a"], "x" * 256, "é" * 128, "a/" * 2500, "a\0b"])
def test_what_no_disk_takes(monkeypatch, wrong):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no type checker
    connect = lambda path: DatabaseIndex.connect(path, "qdrant:")  # noqa: E731
    for opened in (path_of, absolute, load_model, Searcher, open_store, connect):
        with pytest.raises(UserError, match=r"^(expected a path or a name, found|.*: no path: )"):
            opened(wrong)


def test_names_of_every_letter_stay(tmp_path):
    for name in ("ä" * 127, "a b\\c", "..", "x" * 255):
        assert path_of(tmp_path / name) == tmp_path / name


def test_a_bucket_is_no_place_of_an_index():
    with pytest.raises(UserError, match="gs://a/b: expected a path on disk"):
        Searcher("gs://a/b")
