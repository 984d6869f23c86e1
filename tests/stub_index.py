"""A small index without pictures: what an image shows is a number, from which its descriptors follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ames_jax.data.readers import DescriptorReader, MemoryReader, PartReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.index.building import Descriptors
from ames_jax.index.parts import NewImages

WIDTH, BITS, COUNT, GLOBAL_WIDTH = 8, 16, 3, 16


@dataclasses.dataclass(frozen=True)
class StubDescriptors(Descriptors):
    """Descriptors of images by what they show."""

    contents: tuple[int, ...] = ()

    @classmethod
    def of(cls, contents: Mapping[str, int], root: Path, stamps: np.ndarray | None = None) -> StubDescriptors:
        """Images by id; their pictures lie in `root`."""
        numbers, place = tuple(contents.values()), {"folder": str(root), "suffix": ""}
        vectors = np.array([vector(number) for number in numbers], np.float32).reshape(-1, GLOBAL_WIDTH)
        return cls(root, "images", {}, list(contents), vectors, place, numbers, stamps=stamps)

    def reader(self, rows: np.ndarray | None = None) -> DescriptorReader:
        """See `Descriptors`."""
        features = np.array([local(number) for number in self.contents], np.float32).reshape(-1, COUNT, WIDTH)
        reader = MemoryReader(DescriptorSet(features))
        return reader if rows is None else PartReader(reader, rows)


def local(content: int) -> np.ndarray:
    """float32 [COUNT, WIDTH]."""
    return np.random.default_rng([content, 1]).standard_normal((COUNT, WIDTH), np.float32)


def vector(content: int) -> np.ndarray:
    """float32 [GLOBAL_WIDTH] of length 1."""
    values = np.random.default_rng([content, 2]).standard_normal(GLOBAL_WIDTH, np.float32)
    return values / np.linalg.norm(values)


def packed(contents: Mapping[str, int], bytes_each: int = BITS // 8) -> NewImages:
    """Images whose bits are made already: the number itself, in every byte."""
    numbers = np.array(list(contents.values()), np.uint8)
    bits = np.broadcast_to(numbers[:, None, None], (len(numbers), COUNT, bytes_each)).copy()
    vectors = np.array([vector(number) for number in contents.values()], np.float32)
    return NewImages(list(contents), vectors, MemoryReader(DescriptorSet(bits)), "stub", [(len(numbers), None)])


def numbers_of(bits: Sequence[np.ndarray]) -> list[int]:
    """Of bits as `packed` makes them, the number of every image."""
    return [int(values.flat[0]) for values in bits]
