"""Local descriptors by image, read from anything: the protocol, and readers made of memory and of other readers.

Readers of files: `release_hdf5.ReleaseSource`, `shards.ShardSource`, `store.PackedStore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.files import digest_of


@runtime_checkable
class DescriptorReader(Protocol):
    """Anything that holds the descriptors of N images."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """The first `count` descriptors (fewer where fewer are stored) of images `rows`, int [n], ascending.

        Features [n, T, ·] as stored, `valid` [n, T], which may be None where all are real, and `xy` [n, T, 2] where the
        data has positions.
        """
        ...

    def fingerprint(self) -> str:
        """A text that is another where the descriptors are others."""
        ...


class MemoryReader:
    """A set [N, T, ·] that is in memory."""

    def __init__(self, descriptors: DescriptorSet) -> None:
        self._descriptors = DescriptorSet(descriptors.features, descriptors.valid, descriptors.xy)

    @classmethod
    def load(cls, reader: DescriptorReader, count: int) -> MemoryReader:
        """The first `count` descriptors of every image of a reader; `valid` is None when all are real."""
        images = reader.read(np.arange(len(reader)), count)
        valid = None if images.valid is None or images.valid.all() else images.valid
        return cls(DescriptorSet(images.features, valid, images.xy))

    def __len__(self) -> int:
        return len(self._descriptors.features)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """As `DescriptorReader`; rows in any order."""
        return self._descriptors.truncate(count)[rows]

    def fingerprint(self) -> str:
        """A hash of the descriptors."""
        features, valid = self._descriptors.features, self._descriptors.valid
        return digest_of(features, *([] if valid is None else [valid]))


class PartReader:
    """Some images of another reader, as a reader; rows: int [n], ascending."""

    def __init__(self, reader: DescriptorReader, rows: np.ndarray) -> None:
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """As `DescriptorReader`."""
        return self._reader.read(self._rows[rows], count)

    def fingerprint(self) -> str:
        """Of the other reader and the rows."""
        return f"{self._reader.fingerprint()} {digest_of(self._rows)}"


class ConcatenatedReader:
    """Several readers as one: the images of the first, then those of the second, … (a gallery and its distractors)."""

    def __init__(self, parts: Sequence[DescriptorReader]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """As `DescriptorReader`."""
        pieces = []
        for part, end in zip(self._parts, self._ends):
            start = end - len(part)
            inside = rows[(rows >= start) & (rows < end)] - start
            if len(inside):
                pieces.append(part.read(inside, count))
        if len(pieces) == 1:
            return pieces[0]
        shared = min(piece.count for piece in pieces)
        pieces = [piece.truncate(shared) for piece in pieces]
        valid = [np.ones(piece.features.shape[:2], bool) if piece.valid is None else piece.valid for piece in pieces]
        xy = None if any(p.xy is None for p in pieces) else np.concatenate([piece.xy for piece in pieces])
        return DescriptorSet(np.concatenate([piece.features for piece in pieces]), np.concatenate(valid), xy)

    def fingerprint(self) -> str:
        """Of all parts in their order."""
        return " ".join(part.fingerprint() for part in self._parts)
