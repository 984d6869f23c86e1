"""Paths that a user gives: on disk, or in a bucket."""

from __future__ import annotations

import os
from pathlib import Path

from etils import epath

from ames_jax.runtime.errors import UserError

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, as Linux takes them


def path_of(text: str | os.PathLike) -> Path:
    """A `pathlib.Path`, or for `gs://…` the same interface to a bucket (needs `pip install gcsfs`).

    Raises UserError for what is no path, or holds a name that no disk takes.
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(f"expected a path or a name, found {type(text).__name__} {str(text)[:60]!r}")
    if is_remote(text):
        return epath.Path(text)
    name = os.fspath(text)
    longest = max((len(os.fsencode(part)) for part in Path(name).parts), default=0)
    if longest > LONGEST_NAME or len(os.fsencode(name)) > LONGEST_PATH or "\0" in name:
        raise UserError(f"{name[:60]!r}…: no path: too long ({len(name)} characters), or with a zero byte in it")
    return Path(name)


def absolute(text: str | os.PathLike) -> Path:
    """The absolute path on disk: what is read later is found from wherever the process is then; raises UserError."""
    if is_remote(path_of(text)):
        raise UserError(f"{text}: expected a path on disk")
    return Path(os.path.abspath(text))


def is_remote(path: str | os.PathLike) -> bool:
    """True for a path in a bucket."""
    return "://" in os.fspath(path)
