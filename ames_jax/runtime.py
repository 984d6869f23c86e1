"""Settings of the process that every entry point shares."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import platformdirs


def home() -> Path:
    """The folder for what is built or downloaded once: AMES_JAX_HOME, else the platform's cache directory."""
    return Path(os.environ.get("AMES_JAX_HOME") or platformdirs.user_cache_dir("ames_jax"))


def start() -> None:
    """Turns the persistent compilation cache on, so that a second run of a program does not compile again."""
    jax.config.update("jax_compilation_cache_dir", str(home() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
