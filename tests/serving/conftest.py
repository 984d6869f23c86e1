"""A small collection, indexed once, and a server of it that tests share where they do not change it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import photo_folder
import pytest

from ames_jax import search

pytest.importorskip("fastapi")

import http_server


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Pictures and an index of views 0 to 2 of every scene; `asked` holds view 5. Locks lie in a folder of the tests."""
    root = tmp_path_factory.mktemp("serving")
    statistics = photo_folder.write_statistics(root / "statistics.npz")
    photo_folder.write_pictures(root / "asked", range(5, 6))
    with on_one_device(root):
        photo_folder.extract(photo_folder.write_pictures(root / "pictures", range(3)), root / "set", statistics)
        model = photo_folder.write_model(root / "model", statistics)
        command = ["index", f"--descriptors={root / 'set'}", f"--model={model}", f"--out={root / 'index'}"]
        assert search.main([*command, "--budget=80B"]) == 0
    return root


@pytest.fixture(scope="module", autouse=True)
def one_device(made) -> Iterator[None]:
    """For the tests of this folder alone: others of the same process go on with all devices."""
    with on_one_device(made):
        yield


@contextlib.contextmanager
def on_one_device(root: Path) -> Iterator[None]:
    """Eight fake devices only make small programs slower to compile."""
    first = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMES_JAX_HOME", str(root / "home"))
        patch.setattr(jax, "local_devices", lambda: first)
        patch.setattr(search.cache, "start", lambda: None)
        yield


@pytest.fixture
def photo(made) -> bytes:
    """A picture of scene 1 that is not in the index."""
    return (made / "asked" / "scene1" / "5.jpg").read_bytes()


@pytest.fixture(scope="session")
def server(made) -> Iterator[http_server.Client]:
    """A server of the index, which tests leave as it is."""
    with contextlib.ExitStack() as stack:
        with on_one_device(made):
            client = stack.enter_context(http_server.served(made / "index"))
        yield client


@pytest.fixture
def own(made, tmp_path) -> Iterator[http_server.Client]:
    """A server of a copy of the index, to be changed."""
    shutil.copytree(made / "index", tmp_path / "index")
    with http_server.served(tmp_path / "index") as client:
        yield client
