"""Database descriptors in bounded memory: an image that several shortlists share is read (and packed to bits) once."""

from __future__ import annotations

import numpy as np

from ames_jax.data.store import DescriptorReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.packing import BitPacker

READ_BYTES = 64 << 20


class DatabaseCache:
    """The images used last, up to about half of `memory_bytes`; the rest is for the blocks on their way to the devices.

    count: descriptors of each image. packer: turns floats to bits on reading (binary models), so that bits are kept and
    a pair is scored on the bits that a store would hold.
    """

    def __init__(self, reader: DescriptorReader, count: int, packer: BitPacker | None, memory_bytes: int):
        self._reader, self._count, self._packer = reader, count, packer
        read = reader.read(np.arange(min(1, len(reader))), count)
        kept = self._packed(read)
        self._images_a_read = max(1, READ_BYTES // max(1, read.features[0].nbytes))
        bytes_an_image = kept.features[0].nbytes + kept.count
        self.images_a_block = max(1, memory_bytes // 8 // bytes_an_image)
        capacity = min(len(reader), max(self.images_a_block, memory_bytes // 2 // bytes_an_image))
        self._features = np.empty((capacity, *kept.features.shape[1:]), kept.features.dtype)
        self._valid = np.empty((capacity, kept.count), bool)
        self._slot_of = np.full(len(reader), -1, np.int64)
        self._image_in = np.full(capacity, -1, np.int64)
        self._last_use = np.zeros(capacity, np.int64)
        self._clock = 0
        self.images_read = 0

    def gather(self, rows: np.ndarray) -> DescriptorSet:
        """Images `rows` (int [n], distinct, n ≤ images_a_block): a copy [n, T, ·] with `valid` [n, T]."""
        self._clock += 1
        slots = self._slot_of[rows]
        self._last_use[slots[slots >= 0]] = self._clock
        missing = np.sort(rows[slots < 0])
        free = np.argsort(self._last_use, kind="stable")[: len(missing)]
        for start in range(0, len(missing), self._images_a_read):
            part = slice(start, start + self._images_a_read)
            self._keep(missing[part], free[part])
        slots = self._slot_of[rows]
        return DescriptorSet(self._features[slots], self._valid[slots])

    def _keep(self, rows: np.ndarray, slots: np.ndarray) -> None:
        images = self._packed(self._reader.read(rows, self._count))
        self._slot_of[self._image_in[slots][self._image_in[slots] >= 0]] = -1
        self._features[slots] = images.features
        self._valid[slots] = True if images.valid is None else images.valid
        self._image_in[slots], self._slot_of[rows] = rows, slots
        self._last_use[slots] = self._clock
        self.images_read += len(rows)

    def _packed(self, images: DescriptorSet) -> DescriptorSet:
        return images if self._packer is None else self._packer.pack(images, "database")
