"""Stamps of picture files, by which one that was replaced is noticed: size, time of change, and a hash of the content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_array
from ames_jax.runtime.progress import Progress


def stamps_of(paths: Sequence[Path], hashed: bool = True) -> np.ndarray:
    """uint64 [n, 4] of picture files: size, time of change (ns), 128 bits of a hash of the content.

    Zeros for a file that is not there or cannot be read, and in place of the hash where it is not asked for.
    """
    stamps = np.zeros((len(paths), 4), np.uint64)
    for row, path in enumerate(paths):
        try:
            facts = os.stat(path)
        except OSError:  # extraction tells which picture is gone
            continue
        stamps[row, :2] = facts.st_size, max(0, facts.st_mtime_ns)
    if hashed and len(paths):
        with ThreadPoolExecutor(usable_cores()) as threads, Progress("comparing", len(paths), "pictures") as progress:
            stamps[:, 2:] = np.array(list(progress.over(threads.map(_hash, paths))), np.uint64)
    return stamps


def content_stamp(file: BinaryIO) -> tuple[int, int, int]:
    """Size and 128 bits of SHA-256 of an open file, which is read from its beginning and left there."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").digest()
    size = file.tell()
    file.seek(0)
    return size, int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def changed_rows(file: Path, paths: Sequence[Path]) -> np.ndarray:
    """Rows of these files whose content is another than when `stamps_of` them were written to a file.

    Hashed are only those of another size or time. Raises UserError where the file does not hold their stamps.
    """
    before = read_array(file)
    if before.shape != (len(paths), 4) or before.dtype != np.uint64:
        raise UserError(
            f"{file}: {before.dtype} {list(before.shape)}, expected uint64 [{len(paths)}, 4]: it is damaged; delete it, and "
            "what was extracted with it"
        )
    suspects = np.flatnonzero((stamps_of(paths, hashed=False)[:, :2] != before[:, :2]).any(axis=1))
    now, content = stamps_of([paths[row] for row in suspects]), [0, 2, 3]
    return suspects[(now[:, content] != before[suspects][:, content]).any(axis=1)]


def _hash(path: Path) -> Sequence[int]:
    """128 bits of SHA-256 of a file's content; zeros where it cannot be read."""
    try:
        with path.open("rb") as file:
            return content_stamp(file)[1:]
    except OSError:
        return 0, 0
