"""Global descriptors on disk: rows of one or several files as one array that is never in memory whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.release_hdf5 import features_of, open_hdf5
from ames_jax.runtime.checksums import note_unchecked, recorded
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_array, write_blocks
from ames_jax.runtime.fingerprints import content_of
from ames_jax.runtime.progress import Progress

BLOCK_BYTES = 64 * 2**20


class GlobalDescriptors:
    """Global descriptors [N, Dg] of files in a row (a gallery and its distractors): release HDF5 or .npy.

    `descriptors[start:stop]` reads these rows (float16 or float32, as stored) and keeps none.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        """Opens the files.

        Raises UserError: a file is missing, cut short, or holds something else; the files are of different widths.
        """
        self._paths = list(map(Path, paths))
        self._parts = [_open(path) for path in self._paths]
        self._ends = np.cumsum([len(part) for part in self._parts])
        width = self._parts[0].shape[1]
        for path, part in zip(paths, self._parts):
            if part.shape[1] != width:
                raise UserError(
                    f"{path}: {part.shape[1]} values per image, but {paths[0]} has {width}: give files of the same network"
                )
        self.shape = (int(self._ends[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        pieces = []
        for path, part, end in zip(self._paths, self._parts, self._ends):
            first = end - len(part)
            low, high = max(start, first), min(stop, end)
            if low < high:
                try:
                    pieces.append(part[low - first : high - first])
                except OSError as error:
                    raise UserError(
                        f"{path}: rows from {low - first} cannot be read ({error}): copy it again"
                    ) from None
        return np.concatenate(pieces) if pieces else np.empty((0, self.shape[1]), np.float32)

    def content(self) -> str:
        """A hash of the files; see `files.content_of`."""
        return content_of(self._paths)

    def save(self, path: Path) -> None:
        """Writes all rows as one float32 .npy file, block by block, whole or not at all.

        Raises UserError, naming the file and the image, for NaN and infinity.
        """
        step = max(1, BLOCK_BYTES // (4 * self.shape[1]))
        starts = range(0, len(self), step)
        with Progress(f"writing {path.name}", len(starts), "blocks") as progress, recorded(path.parent, path.name):
            write_blocks(path, (self._finite(at, step) for at in progress.over(starts)), np.float32, self.shape)

    def _finite(self, start: int, count: int) -> np.ndarray:
        values = self[start : start + count]
        for row in start + np.flatnonzero(~np.isfinite(values).all(axis=1))[:1]:
            part = int(np.searchsorted(self._ends, row, side="right"))
            place = row - self._ends[part] + len(self._parts[part])
            raise UserError(
                f"{self._paths[part]}: the global descriptor of image {place} holds NaN or infinity: extract it again"
            )
        return values


def _open(path: Path) -> Any:
    """An array of rows that are read when asked for."""
    if path.suffix == ".npy":
        values = read_array(path, mapped=True)
        note_unchecked(path)
    else:
        values = features_of(open_hdf5(path), path)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise UserError(f"{path}: expected global descriptors [images, values], found {values.dtype} {values.shape}")
    return values
