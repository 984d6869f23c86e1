"""Readers of local descriptors (see `data.store.DescriptorReader`): files of the release, shards, memory, parts and joins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ames_jax.data.release_files import LocalFeatures
from ames_jax.data.shards import open_split
from ames_jax.data.store import DescriptorReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.files import digest_of

# Reading this much in vain costs about as much as one more call.
GAP_BYTES = 16 << 10


def fingerprint_of(files: Iterable[str | Path]) -> str:
    """A hash of where files lie, their sizes and when they were changed: 16 hexadecimal digits."""
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in map(Path, files)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


class MemoryReader:
    """Descriptors in memory: a set [N, K, ·]."""

    def __init__(self, descriptors: DescriptorSet):
        self._descriptors = descriptors

    @classmethod
    def load(cls, reader: DescriptorReader, count: int) -> MemoryReader:
        """The first `count` descriptors of every image of a reader; `valid` is None when all are real."""
        images = reader.read(np.arange(len(reader)), count)
        return cls(DescriptorSet(images.features, None if images.valid is None or images.valid.all() else images.valid))

    def __len__(self) -> int:
        return len(self._descriptors.features)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """The first `count` descriptors of images `rows`, int [n], in any order."""
        images = self._descriptors
        return DescriptorSet(images.features, images.valid).truncate(count)[rows]

    def fingerprint(self) -> str:
        """A hash of the descriptors."""
        images = self._descriptors
        return digest_of(images.features, *([] if images.valid is None else [images.valid]))


class PartReader:
    """Some images of another reader: rows int [n], ascending."""

    def __init__(self, reader: DescriptorReader, rows: np.ndarray):
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """As the other reader reads; rows ascending."""
        return self._reader.read(self._rows[rows], count)

    def fingerprint(self) -> str:
        """Of the other reader and the rows."""
        return f"{self._reader.fingerprint()} {digest_of(self._rows)}"


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

    def fingerprint(self) -> str:
        """Of the file, and of its parts where it is a virtual one."""
        return fingerprint_of(self._file.files)


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

    def ids(self) -> list[str]:
        """The id of every image."""
        return self._source.ids()

    def fingerprint(self) -> str:
        """Of the files that hold the split."""
        return fingerprint_of(self._source.files)


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

    def fingerprint(self) -> str:
        """Of all parts in their order."""
        return " ".join(part.fingerprint() for part in self._parts)
