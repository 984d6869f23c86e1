"""FAISS behind the first stage: kinds, parts, parameters."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ames_jax.index.first_stage import GlobalIndex, factory_string, make_empty, write_empty, write_part
from ames_jax.runtime import files
from ames_jax.runtime.errors import UserError

pytest.importorskip("faiss")


@pytest.mark.parametrize(
    ("kind", "parameters"), [("flat", None), ("ivf", "nprobe=99"), ("hnsw", None), ("SQfp16", None)]
)
def test_global_indexes_of_every_kind(tmp_path, kind, parameters):
    """In two parts; exact or nearly so on 400 images."""
    vectors = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_empty(make_empty(kind, vectors), tmp_path / "empty")
    for part, rows in (("a", slice(0, 300)), ("b", slice(300, 400))):
        write_part(tmp_path / "empty", vectors[rows], tmp_path / part)
    index = GlobalIndex([tmp_path / "a", tmp_path / "b"], parameters)
    similarities, rows = index.search(vectors[::40], 5)
    expected = np.argsort(-(vectors[::40] @ vectors.T), axis=1)[:, :5]
    assert (rows == expected).mean() > 0.95
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-2)


def test_global_indexes_that_cannot_be(tmp_path):
    vectors = np.eye(8, dtype=np.float32)
    assert factory_string("ivf", 10**6) == "IVF4000,Flat"
    assert factory_string("ivf", 8) == "IVF1,Flat"
    with pytest.raises(UserError, match="--global-index=Nonsense: FAISS cannot make"):
        make_empty("Nonsense", vectors)
    with pytest.raises(UserError, match="--global-index=IDMap,Flat: FAISS cannot make"):
        make_empty("IDMap,Flat", vectors)
    for kind in ("HNSW0,Flat", "HNSW1", "IVF2_HNSW0,Flat", "OPQ0,PQ3", "PQ1x0"):
        with pytest.raises(UserError, match=f"--global-index={kind}: FAISS cannot make an index of"):
            make_empty(kind, vectors)
    write_empty(make_empty("flat", vectors), tmp_path / "empty")
    with pytest.raises(UserError, match="--faiss=nprobe=3: this index has no such"):
        GlobalIndex([tmp_path / "empty"], "nprobe=3")
    with pytest.raises(UserError, match="have 5 values, those of the index 8"):
        write_part(tmp_path / "empty", np.ones((2, 5)), tmp_path / "part")


@pytest.mark.parametrize(("kind", "each"), [("flat", 64), ("hnsw", 64 + 256), ("SQfp16", 32)])
def test_a_disk_too_small_is_told_before_a_part_is_written(tmp_path, monkeypatch, rng, kind, each):
    vectors = rng.standard_normal((400, 16), np.float32)
    write_empty(make_empty(kind, vectors), tmp_path / "empty")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=400 * each - 1))
    with pytest.raises(UserError, match=r"needs 0.* MB"):
        write_part(tmp_path / "empty", vectors, tmp_path / "part")
