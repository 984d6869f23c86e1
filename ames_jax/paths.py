"""Paths on disk or in a bucket."""

from __future__ import annotations

import os
from pathlib import Path

from etils import epath


def path_of(text: str | os.PathLike) -> Path:
    """A `pathlib.Path`, or for `gs://…` the same interface to a bucket (needs `pip install gcsfs`)."""
    return epath.Path(text) if is_remote(text) else Path(text)


def is_remote(path: str | os.PathLike) -> bool:
    """True for a path in a bucket."""
    return "://" in os.fspath(path)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a killed process leaves the old one or the new one, never a part.

    Raises OSError. An object in a bucket appears whole by itself; on disk a finished file takes the place of the old.
    """
    if is_remote(path):
        path.write_bytes(content)
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
