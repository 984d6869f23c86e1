"""Near-duplicates in an index: images whose global descriptors are close and whose stored bits are nearly the same."""

from __future__ import annotations

import numpy as np

from ames_jax.index.collection import SearchIndex
from ames_jax.runtime.progress import Progress

BLOCK = 256
# Images that each is compared with, the most similar ones.
NEIGHBOURS = 16
# Of the bits of a descriptor, the share that may differ where the same spot was pictured in another size or quality.
DIFFERENT = 0.15


def find_duplicates(index: SearchIndex, similarity: float = 0.5, share: float = 0.5) -> list[list[str]]:
    """Groups of ids of pictures that are nearly the same, in the order of the index; images without descriptors have none.

    Args:
      similarity: least similarity of the global descriptors of two images that are compared.
      share: least share of the descriptors of the image with fewer of them for which the other has one of nearly the same
        bits. Images of one group are joined by such pairs, and need not all be like one another.
    """
    head = np.arange(len(index))  # the first image of each one's group
    with Progress("comparing", len(index), "images") as progress:
        for start in range(0, len(index), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(index)))
            similarities, found = index.global_index.search(index.global_index[rows], NEIGHBOURS)
            pairs = {
                (min(row, other), max(row, other))
                for row, others, values in zip(rows.tolist(), found.tolist(), similarities)
                for other, value in zip(others, values)
                if other not in (row, -1) and value >= similarity
            }
            _join(index, sorted(pairs), head, share)
            progress.update(len(rows))
    groups: dict[int, list[str]] = {}
    for row, name in enumerate(index.ids):
        groups.setdefault(_head_of(head, row), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _join(index: SearchIndex, pairs: list[tuple[int, int]], head: np.ndarray, share: float) -> None:
    """Joins the groups of those pairs that are near-duplicates."""
    needed, places = np.unique(np.array(pairs, np.int64).reshape(-1, 2), return_inverse=True)
    images = index.read(needed)
    sets = [bits[valid] for bits, valid in zip(images.features, images.valid)]
    for (row, other), (a, b) in zip(pairs, places.reshape(-1, 2)):
        first, second = sorted((_head_of(head, row), _head_of(head, other)))
        if first != second and shared_descriptors(sets[a], sets[b]) >= share:
            head[second] = first


def _head_of(head: np.ndarray, row: int) -> int:
    while head[row] != row:
        head[row] = head[head[row]]
        row = int(head[row])
    return row


def shared_descriptors(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the descriptors of the image with fewer of them for which the other has one of nearly the same bits.

    first, second: bits uint8 [N, bits / 8] of two images; 0 where one has none.
    """
    few, many = sorted((first, second), key=len)
    if not len(few):
        return 0.0
    different = np.bitwise_count(few[:, None] ^ many[None]).sum(axis=2, dtype=np.int64)
    return float((different.min(axis=1) <= DIFFERENT * 8 * few.shape[1]).mean())
