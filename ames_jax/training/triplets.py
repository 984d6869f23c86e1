"""Training triplets drawn from neighbour lists (paper, section 4; release: training data sampler)."""

from __future__ import annotations

import functools

import numpy as np

from ames_jax.data.neighbours import Neighbours
from ames_jax.runtime.errors import UserError

# Rows of the neighbour lists that are worked on at once; bounds the memory at some 100 MB.
BLOCK = 32768


class Triplets:
    """Anchors with a positive and a negative partner, in a new random order every epoch.

    An anchor is valid when its `top` nearest images, itself left out, hold at least `minimum` images of its own label
    and `minimum` of other labels with a similarity above 0. Each valid anchor comes once an epoch; its partners are
    drawn among those images with probability ∝ similarity^`power` within their kind.
    A triplet is a pure function of (seed, epoch, position).
    """

    def __init__(
        self,
        labels: np.ndarray,
        neighbours: Neighbours,
        *,
        seed: int,
        top: int = 300,
        minimum: int = 5,
        power: float = 3.0,
    ) -> None:
        """Finds the valid anchors, in blocks of rows and without a copy of the lists.

        Args:
          labels: integers [N], one label per image.
          neighbours: lists of N rows; they may hold the image itself.
          seed, top, minimum, power: as above.

        Raises:
          UserError: when labels and lists do not belong together or no anchor is valid.
        """
        if len(labels) != len(neighbours):
            raise UserError(
                f"{len(labels)} labels but neighbour lists of {len(neighbours)} images: they are not of the same split"
            )
        # Dense labels are smaller, so that looking up hundreds for every image stays in the processor's cache.
        self._labels = np.unique(labels, return_inverse=True)[1].astype(np.int32)
        self._neighbours = neighbours
        self.seed, self.top, self.minimum, self.power = seed, top, minimum, power
        blocks = [self._valid(start) for start in range(0, len(labels), BLOCK)]
        self.anchors = np.concatenate(blocks)
        if not len(self.anchors):
            raise UserError(
                f"no image has {minimum} images of its own label and {minimum} of others among its {top} neighbours: "
                "check that labels and neighbour lists are of the same images in the same order, or lower the minimum"
            )

    def __len__(self) -> int:
        """Triplets per epoch: the number of valid anchors."""
        return len(self.anchors)

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """int64 [n, 3], rows of anchor, positive and negative at the positions [n] (0 ≤ position < len) of an epoch."""
        order, draws = _epoch(self.seed, epoch, len(self.anchors))
        anchors = self.anchors[order[positions]]
        indices, positive, negative = self.candidates(anchors)
        columns = [_draw(w, u) for w, u in zip((positive, negative), draws[positions].T)]
        return np.stack([anchors, *(indices[np.arange(len(anchors)), column] for column in columns)], axis=1)

    def candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates int64 [n, c], -1 for none, and float64 weights [n, c] as positive and as negative."""
        indices, similarities = self._nearest(rows)
        same = self._labels[indices] == self._labels[rows][:, None]
        weights = np.where(indices >= 0, np.maximum(similarities, 0).astype(np.float64) ** self.power, 0)
        return indices.astype(np.int64), np.where(same, weights, 0), np.where(same, 0, weights)

    def _nearest(self, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Lists [n, top + 1] of some rows, with -1 for the image itself and for what lies past the nearest `top`."""
        indices = np.array(self._neighbours.indices[rows, : self.top + 1])
        similarities = np.asarray(self._neighbours.similarities[rows, : self.top + 1])
        itself = indices == (np.arange(len(self._labels))[rows])[:, None]
        if indices.shape[1] > self.top:
            indices[~itself.any(axis=1), self.top] = -1
        indices[itself] = -1
        return indices, similarities

    def _valid(self, start: int) -> np.ndarray:
        rows = slice(start, min(start + BLOCK, len(self._labels)))
        indices, similarities = self._nearest(rows)
        if indices.size and int(indices.max()) >= len(self._labels):
            raise UserError(
                f"the neighbour lists name image {int(indices.max())} of {len(self._labels)}: they are of other images"
            )
        counted = (indices >= 0) & (similarities > 0)
        same = self._labels[indices] == self._labels[rows][:, None]
        positives = np.count_nonzero(counted & same, axis=1)
        negatives = np.count_nonzero(counted, axis=1) - positives
        return start + np.flatnonzero((positives >= self.minimum) & (negatives >= self.minimum))


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch [count] and the two random numbers in [0, 1) of each position [count, 2]."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return random.permutation(count), random.random((count, 2))


def _draw(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One column per row of weights [n, c], with probability ∝ its weight, from uniform numbers [n] in [0, 1)."""
    reached = np.cumsum(weights, axis=1)
    # A number that rounds to the whole sum would fall behind the last column.
    target = np.minimum(uniform, 1 - 2.0**-30) * reached[:, -1]
    return np.count_nonzero(reached <= target[:, None], axis=1)
