"""Geometric verification: matches of stored bits that one transformation of the plane explains (RANSAC of OpenCV, USAC).

The positions of a database image's descriptors are stored beside its bits, as 2 × 8 or 2 × 16 bits that count in the
bytes of an image. They are shares of the image's width and height: affine maps and homographies are the same in them, and a
similarity is one where both images have the same proportions.
"""

from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.packing import BitPacker
from ames_jax.model.whitening import Whitening
from ames_jax.retrieval.maxsim import HandMadeMatcher, mutual_pairs

# Transformation → matches that determine it.
SAMPLES = {"similarity": 2, "affine": 3, "homography": 4}
LEAST_SIMILARITIES = (0.1, 0.3, 0.5)  # of a match
TOLERANCES = (0.01, 0.03, 0.1)  # distance of a match from where it should be, as a share of the image
ITERATIONS, CONFIDENCE = 1000, 0.99
POSITIONS = {8: np.uint8, 16: np.uint16}


class RansacMatcher(HandMadeMatcher):
    """The number of matches that agree with one transformation, beyond those that determine it.

    Matches are descriptors that are each other's best; of stored bits, the query's projections are compared. Validation
    chooses transformation, least similarity and tolerance. Scores depend on nothing but the pair: the matches are put in
    an order of their own before they are sampled, always with the same random numbers.

    Args:
      name: as tables print it.
      packer: of a binary model, whose bits are stored; or whitening: of floats, stored in float16.
      position_bits: of each of a position's two numbers, 8 or 16.
    """

    positions = True
    thresholds = tuple(
        f"{kind}, matches > {least:g}, within {tolerance:g}"
        for kind, least, tolerance in itertools.product(SAMPLES, LEAST_SIMILARITIES, TOLERANCES)
    )

    def __init__(
        self,
        name: str,
        *,
        packer: BitPacker | None = None,
        whitening: Whitening | None = None,
        position_bits: int = 8,
    ):
        super().__init__(name, packer, whitening)
        self.kind, self._position_bits = "geometry", position_bits
        self.facts = {"ransac": list(self.thresholds), "position_bits": position_bits, **self.facts}

    def stored_bytes(self, count: int) -> int:
        """See `Matcher`; positions included."""
        return super().stored_bytes(count) + count * 2 * self._position_bits // 8

    def stored(self, database: DescriptorSet) -> DescriptorSet:
        """Bits or floats, and `xy` as whole numbers, uint8 or uint16 [n, T, 2]."""
        most = 2**self._position_bits - 1
        xy = np.rint(np.clip(np.asarray(database.xy, np.float32), 0, 1) * most).astype(POSITIONS[self._position_bits])
        return dataclasses.replace(super().stored(database), xy=xy)

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        """float32 [K, F]: one score for each of `thresholds`."""
        places = np.asarray(database.xy, np.float32) / np.float32(2**self._position_bits - 1)
        scores = np.zeros((len(places), len(self.thresholds)), np.float32)
        blocks = self.similarities(query, database, "floats")
        for row, similarity in enumerate(itertools.chain.from_iterable(blocks)):
            scores[row] = self._score(similarity, np.asarray(query.xy, np.float32), places[row])
        return scores

    def _score(self, similarity: np.ndarray, query_xy: np.ndarray, xy: np.ndarray) -> list[int]:
        """One image: similarity [T, Q], positions [Q, 2] and [T, 2]."""
        best = similarity.max(axis=0, initial=-1), similarity.max(axis=1, initial=-1)
        mutual = mutual_pairs(similarity[None], best[0][None], best[1][None])[0]
        rows, columns = np.nonzero(mutual & (similarity > LEAST_SIMILARITIES[0]))
        values, source, target = similarity[rows, columns], query_xy[columns], xy[rows]
        order = np.lexsort((*target.T, *source.T, -values))
        values, source, target = values[order], source[order], target[order]
        counts = [int(np.count_nonzero(values > least)) for least in LEAST_SIMILARITIES]
        return [
            max(0, _inliers(kind, source[:count], target[:count], tolerance) - sample) if count > sample else 0
            for (kind, sample), count, tolerance in itertools.product(SAMPLES.items(), counts, TOLERANCES)
        ]


def _inliers(kind: str, source: np.ndarray, target: np.ndarray, tolerance: float) -> int:
    """Matches, float32 [n, 2] on both sides, that the best transformation found moves to within `tolerance`."""
    if kind == "similarity":  # which USAC does not estimate
        options = {"ransacReprojThreshold": tolerance, "maxIters": ITERATIONS, "confidence": CONFIDENCE}
        _, inside = cv2.estimateAffinePartial2D(source, target, method=cv2.RANSAC, refineIters=0, **options)
    else:
        settings = cv2.UsacParams()
        settings.threshold, settings.maxIterations, settings.confidence = tolerance, ITERATIONS, CONFIDENCE
        estimate = cv2.estimateAffine2D if kind == "affine" else cv2.findHomography
        _, inside = estimate(source, target, settings)
    return 0 if inside is None else int(np.count_nonzero(inside))
