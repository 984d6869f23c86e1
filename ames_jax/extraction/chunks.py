"""ExtractedImage descriptors on their way to a data set: chunks of images, each a file that is written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ames_jax.data.records import ImageRecord
from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.backbone import Backbone, ExtractedImage

UNFINISHED = ".extracted"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Images [start, start + n) of a list.

    Attributes:
      local: [n, K, ·], padded. global_descriptors: float32 [n, G].
      sizes: int [n, 2], width and height of the whole pictures.
      broken: what is wrong with each image, "" where it was extracted; rows of broken images are zeros.
    """

    local: DescriptorSet
    global_descriptors: np.ndarray
    sizes: np.ndarray
    broken: list[str]


class ChunkFolder:
    """The chunks of one split below its data set's folder, `size` images each but the last."""

    def __init__(self, root: Path, split: str, images: int, size: int) -> None:
        self.folder, self.images, self.size = root / UNFINISHED / split, images, size

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{number:07d}.npz"

    def rows(self, number: int) -> range:
        """The images of a chunk."""
        return range(number * self.size, min((number + 1) * self.size, self.images))

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not there."""
        return [number for number in range(len(self)) if not self.path(number).exists()]

    def write(self, number: int, chunk: Chunk) -> None:
        """Keeps a chunk; features in float16, which is what data sets store."""
        local = chunk.local
        unfinished = self.folder / f".{number:07d}.{os.getpid()}.npz"
        np.savez(
            unfinished, features=local.features.astype(np.float16), valid=local.valid, xy=local.xy, scale=local.scale,
            weight=local.weight, global_descriptors=chunk.global_descriptors, sizes=chunk.sizes,
            broken=json.dumps(chunk.broken),
        )  # fmt: skip
        os.replace(unfinished, self.path(number))

    def read(self, number: int) -> Chunk:
        """A chunk that was written."""
        with np.load(self.path(number)) as file:
            local = DescriptorSet(*(file[name] for name in ("features", "valid", "xy", "scale", "weight")))
            return Chunk(local, file["global_descriptors"], file["sizes"], json.loads(str(file["broken"])))

    def __iter__(self) -> Iterator[Chunk]:
        return map(self.read, range(len(self)))


def chunk_of(found: Sequence[ExtractedImage | str], sizes: np.ndarray, backbone: Backbone) -> Chunk:
    """A chunk of what was found of each image, or of why it is broken."""
    empty, blank = np.zeros((0, backbone.width), np.float32), np.zeros(0, np.float32)
    none = ExtractedImage(
        DescriptorSet(empty, None, np.zeros((0, 2), np.float32), blank, blank),
        np.zeros(backbone.global_width, np.float32),
    )
    extracted = [none if isinstance(item, str) else item for item in found]
    real = [dataclasses.replace(item.local, valid=np.ones(item.local.count, bool)) for item in extracted]
    padded = stack(real, backbone.descriptors)
    return Chunk(
        padded, np.stack([item.global_descriptor for item in extracted]), sizes,
        [item if isinstance(item, str) else "" for item in found],
    )  # fmt: skip


class ChunkRecords(Sequence[ImageRecord]):
    """The whole images of a chunk folder as records; picklable, and quick to read in order."""

    def __init__(self, chunks: ChunkFolder, ids: Sequence[str], labels: Sequence[int], rows: Sequence[int]) -> None:
        """rows: images that are not broken; ids, labels: of all images."""
        self._chunks, self._rows = chunks, list(rows)
        self._ids, self._labels = [ids[row] for row in self._rows], [labels[row] for row in self._rows]
        self._open: tuple[int, Chunk] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> ImageRecord:
        number, place = divmod(self._rows[row], self._chunks.size)
        if self._open is None or self._open[0] != number:
            self._open = number, self._chunks.read(number)
        return ImageRecord(self._ids[row], self._labels[row], self._open[1].local[place])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}
