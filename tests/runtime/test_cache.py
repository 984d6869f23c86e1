"""The one cache folder, wherever the environment and the system put it."""

import os
import sys
from pathlib import Path

import jax
import platformdirs
import pytest

from ames_jax.runtime import cache

COMPILE_SECONDS = "jax_persistent_cache_min_compile_time_secs"


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


def test_programs_are_kept_where_jax_has_no_folder_for_them(monkeypatch, tmp_path):
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", COMPILE_SECONDS)}
    try:
        for folder, expected in ((None, str(tmp_path / "compiled")), ("/mine", "/mine")):
            jax.config.update("jax_compilation_cache_dir", folder)
            cache.start()
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_folder_in_the_environment_stays(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    cache.start()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/mine"
