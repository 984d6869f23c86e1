"""Fingerprints of files: whether a job's inputs are those that it was begun with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ames_jax.runtime.errors import UserError

# Of files above the first size, so many samples of the last size stand for the whole in a fingerprint.
WHOLE_BYTES, SAMPLES, SAMPLE_BYTES = 1 << 24, 256, 1 << 12


def fingerprint_of(files: Iterable[str | Path]) -> str:
    """A hash of where files lie, their sizes, when they were changed, and samples of them: 16 hexadecimal digits.

    Raises UserError where one is missing or no regular file.
    """
    facts = [(str(path.resolve()), path.stat().st_mtime_ns, _sample_of(path)) for path in _regular(files)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def content_of(files: Iterable[str | Path]) -> str:
    """A hash of what files hold, wherever they lie: 16 hexadecimal digits.

    Small files are read whole. Of large ones the size, samples and the time of their last change must do, so that one that
    was copied without its time counts as another. Raises UserError where one is missing or no regular file.
    """
    facts = [
        (_sample_of(path), path.stat().st_mtime_ns if path.stat().st_size > WHOLE_BYTES else None)
        for path in _regular(files)
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _regular(files: Iterable[str | Path]) -> list[Path]:
    paths = list(map(Path, files))
    for path in (path for path in paths if not path.is_file()):
        raise UserError(f"{path} is {'no regular file' if path.exists() else 'missing'}; write or copy it again")
    return paths


def _sample_of(path: Path) -> tuple[int, str]:
    """The size of a file, and a hash of the whole of a small one, or of samples spread over a large one."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return size, hashlib.file_digest(file, "sha256").hexdigest()
        for number in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return size, digest.hexdigest()
