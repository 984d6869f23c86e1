"""The one cache folder, wherever the environment and the system put it."""

import sys
from pathlib import Path

import platformdirs
import pytest

from ames_jax.runtime import cache


def test_the_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("AMES_JAX_HOME", "~/somewhere")
    assert cache.home() == Path.home() / "somewhere"


def test_our_name_stands_in_it_once(monkeypatch):
    """Windows puts the author's folder in between unless told that there is none."""
    asked = {}
    monkeypatch.delenv("AMES_JAX_HOME", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name, **options: asked.update(options) or f"/x/{name}")
    assert cache.home() == Path("/x/ames_jax")
    assert asked == {"appauthor": False}


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of Linux")
def test_linux_keeps_its_folder(monkeypatch):
    monkeypatch.delenv("AMES_JAX_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache.home() == Path("/caches/ames_jax")
