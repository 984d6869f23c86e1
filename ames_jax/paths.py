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
