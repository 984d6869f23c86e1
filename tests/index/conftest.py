"""A folder of pictures, its descriptors, a model and an index, made once for all tests of search."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import photo_folder
import pytest

from ames_jax import search

BUDGET = 80  # 20 descriptors of 4 bytes


@pytest.fixture
def one_device(monkeypatch, tmp_path_factory):
    """Eight fake devices only make the small programs slower to compile; locks lie in a folder of the tests."""
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(search.cache, "start", lambda: None)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Iterator[Path]:
    """Pictures, descriptors, model, and an index of views 0 to 2 of every scene; `asked` holds view 5."""
    pytest.importorskip("faiss")
    root = tmp_path_factory.mktemp("search")
    statistics = photo_folder.write_statistics(root / "statistics.npz")
    pictures = photo_folder.write_pictures(root / "pictures", range(3))
    photo_folder.extract(pictures, root / "set", statistics)
    photo_folder.write_model(root / "model", statistics)
    photo_folder.write_pictures(root / "asked", range(5, 6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMES_JAX_HOME", str(root / "home"))
        patch.setattr(search.cache, "start", lambda: None)
        command = ["index", f"--descriptors={root / 'set'}", f"--model={root / 'model'}", f"--out={root / 'index'}"]
        assert search.main([*command, f"--budget={BUDGET}B"]) == 0
    return root


@pytest.fixture
def grown(made, tmp_path) -> Path:
    """A copy of the index, and descriptors of the same folder with two more views of each scene."""
    shutil.copytree(made / "index", tmp_path / "index")
    photo_folder.write_pictures(made / "pictures", range(3, 5))
    photo_folder.extract(made / "pictures", tmp_path / "set", made / "statistics.npz")
    return tmp_path
