"""Readers of local descriptors (see `index.store.DescriptorReader`): HDF5 files of the release, shards, several in a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ames_jax.data.release_files import LocalFeatures
from ames_jax.data.shards import open_split
from ames_jax.data.store import DescriptorReader
from ames_jax.descriptors import DescriptorSet

# Reading this much in vain costs about as much as one more call.
GAP_BYTES = 16 << 10


class FileReader:
    """An HDF5 file of the release: `…_local.hdf5` in any of its layouts."""

    def __init__(self, path: Path):
        self._file = LocalFeatures(path)

    def __len__(self) -> int:
        return len(self._file)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """The first `count` descriptors of images `rows`, int [n], ascending; rows that lie close together in one go."""
        count = min(count, self._file.rows)
        row_bytes = count * self._file.width * self._file.dtype.itemsize
        breaks = np.flatnonzero(np.diff(rows) > 1 + GAP_BYTES // row_bytes) + 1
        runs = [(run, self._file.read(slice(run[0], run[-1] + 1), count)) for run in np.split(rows, breaks)]
        features = np.concatenate([images.features[run - run[0]] for run, images in runs])
        return DescriptorSet(features, np.concatenate([images.valid[run - run[0]] for run, images in runs]))


class ShardReader:
    """One split of a prepared data set."""

    def __init__(self, root: Path, split: str):
        self._source = open_split(root, split)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """The first `count` descriptors of images `rows`: features as stored [n, T, ·], `valid` [n, T]."""
        images = [self._source[row].descriptors.truncate(count) for row in rows]
        return DescriptorSet(np.stack([i.features for i in images]), np.stack([i.valid for i in images]))


class ConcatenatedReader:
    """Several readers as one: the images of the first, then those of the second, … (a gallery and its distractors)."""

    def __init__(self, parts: tuple[DescriptorReader, ...]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """As the parts read; rows ascending."""
        starts = self._ends - [len(part) for part in self._parts]
        pieces = []
        for part, start, end in zip(self._parts, starts, self._ends, strict=True):
            inside = rows[(rows >= start) & (rows < end)] - start
            if len(inside):
                pieces.append(part.read(inside, count))
        if len(pieces) == 1:
            return pieces[0]
        shared = min(piece.count for piece in pieces)
        pieces = [piece.truncate(shared) for piece in pieces]
        valid = [np.ones(p.features.shape[:2], bool) if p.valid is None else p.valid for p in pieces]
        return DescriptorSet(np.concatenate([p.features for p in pieces]), np.concatenate(valid))
