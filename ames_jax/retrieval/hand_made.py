"""Hand-made matching: MaxSim and mutual neighbours, as vector databases and feature matchers do it, and RANSAC.

Each form of MaxSim is a sum of max(0, similarity − t) over the best partner of every query descriptor ("query"), of every
descriptor of both images ("both", half of the two sums), or over descriptors that are each other's best ("mutual"). Stored
bits are compared with the query's bits ("bits") or with its projections before they are binarized ("floats": asymmetric,
exact on the query's side). All forms and thresholds are scored in one pass over the similarities.

Geometric verification counts the matches that one transformation of the plane explains (RANSAC of OpenCV, USAC). The
positions of a database image's descriptors are then stored beside its bits, as 2 × 8 or 2 × 16 bits that count in the bytes of
an image. They are shares of the image's width and height: affine maps and homographies are the same in them, and a
similarity is one where both images have the same proportions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from etils import epy
from jaxtyping import Bool, Float, Float32, UInt8

from ames_jax.data.readers import DescriptorReader
from ames_jax.descriptors import AnyArray, DescriptorSet
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.grid import KERNEL_GAMMAS, KERNEL_THRESHOLDS
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.sets import sample_descriptors
from ames_jax.runtime.files import digest_of

with epy.lazy_imports():  # needed by RANSAC alone
    import cv2

FORMS = ("query", "both", "mutual")
IMAGES_PER_BLOCK = 32  # whose similarities are in memory at a time
WHITENING_SAMPLE, WHITENING_PER_IMAGE = 30_000, 48  # descriptors that whitening is learned from
# Transformation → matches that determine it.
SAMPLES = {"similarity": 2, "affine": 3, "homography": 4}
LEAST_SIMILARITIES = (0.1, 0.3, 0.5)  # of a match
TOLERANCES = (0.01, 0.03, 0.1)  # distance of a match from where it should be, as a share of the image
ITERATIONS, CONFIDENCE = 1000, 0.99
POSITIONS = {8: np.uint8, 16: np.uint16}


@dataclasses.dataclass(frozen=True)
class Whitening:
    """x → (x − mean) @ matrix; mean float32 [D], matrix float32 [D, D]. Makes float descriptors comparable without a model."""

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> Whitening:
        """PCA whitening of `features` [N, D], statistics of a training set.

        Directions with less than 1e-6 of the largest variance carry no signal; they are left at zero.
        """
        features = np.asarray(features, np.float32)
        covariance = np.cov(features, rowvar=False, dtype=np.float64)
        variance, directions = (part[..., ::-1] for part in np.linalg.eigh(covariance))
        gain = np.where(variance > 1e-6 * variance[0], 1 / np.sqrt(np.maximum(variance, 1e-30)), 0)
        return cls(features.mean(axis=0), (directions * gain).astype(np.float32))

    @classmethod
    def of_images(cls, source: DescriptorReader) -> Whitening:
        """Of a sample of the descriptors of these images."""
        return cls.fit(sample_descriptors(source, WHITENING_SAMPLE, WHITENING_PER_IMAGE, seed=0))

    def __call__(self, descriptors: DescriptorSet) -> DescriptorSet:
        """Float descriptors whitened and L2-normalised, float32; packed bits as they are."""
        if descriptors.is_packed:
            return descriptors
        features = np.asarray(descriptors.features, np.float32)
        # One flat product: NumPy runs a product with leading axes as many small ones.
        flat = (features.reshape(-1, features.shape[-1]) - self.mean) @ self.matrix
        features = flat.reshape(*features.shape[:-1], -1)
        norm = np.linalg.norm(features, axis=-1, keepdims=True)
        return dataclasses.replace(descriptors, features=features / np.maximum(norm, 1e-12))


class HandMadeMatcher(Matcher):
    """Matching of the bits of a binary model (`packer`), or of whitened floats, stored in float16 (`whitening`)."""

    gammas = KERNEL_GAMMAS

    def __init__(self, name: str, packer: BitPacker | None, whitening: Whitening | None):
        self.name, self.packer, self.whitening = name, packer, whitening
        self.kind = "kernel on bits" if packer else "kernel on floats"
        read = packer.fingerprint if packer else digest_of(whitening.mean, whitening.matrix)
        self.facts = {self.kind: read}

    def stored_bytes(self, count: int) -> int:
        """See `Matcher`."""
        return count * (self.packer.bits // 8 if self.packer else 2 * len(self.whitening.mean))

    def stored(self, database: DescriptorSet) -> DescriptorSet:
        """Bits, or whitened and normalised floats."""
        return self.packer.pack(database) if self.packer else self.whitening(database)

    def similarities(
        self, query: DescriptorSet, database: DescriptorSet, kind: str
    ) -> Iterator[Float32[np.ndarray, "k T Q"]]:
        """Of a query with blocks of `stored` images [K, T, ·], in their order; −1 where either is padding.

        kind: "bits" or "floats", what of the query is compared with stored bits.
        """
        vectors = self._query(query, kind)
        for start in range(0, database.features.shape[0], IMAGES_PER_BLOCK):
            block = database[start : start + IMAGES_PER_BLOCK]
            stored = _unit_signs(block.features) if block.is_packed else np.asarray(block.features)
            similarity = (stored.reshape(-1, stored.shape[-1]) @ vectors.T).reshape(*stored.shape[:2], len(vectors))
            if query.valid is not None:
                similarity[..., ~np.asarray(query.valid)] = -1
            if block.valid is not None:
                similarity[~np.asarray(block.valid)] = -1
            yield similarity

    def _query(self, query: DescriptorSet, kind: str) -> Float32[np.ndarray, "Q d"]:
        """The query's vectors of length 1, whose product with stored vectors of length 1 is the similarity."""
        if self.packer is None:
            return self.whitening(query).features
        if kind == "floats" and not query.is_packed:
            return self.packer.directions(query.features)
        packed = self.packer.pack(jax.tree.map(lambda field: field[None], query))
        return _unit_signs(packed.features[0])


class MaxSimMatcher(HandMadeMatcher):
    """The hand-made opponent: several forms of matching in one, of which validation chooses one with its threshold.

    Args:
      name: as tables print it.
      packer: of a binary model, whose bits are stored; or whitening: of floats, stored in float16.
      forms: of `FORMS`. queries: "bits" and "floats", for stored bits alone.
    """

    def __init__(
        self,
        name: str,
        *,
        packer: BitPacker | None = None,
        whitening: Whitening | None = None,
        forms: Sequence[str] = FORMS,
        queries: Sequence[str] = ("bits", "floats"),
    ):
        super().__init__(name, packer, whitening)
        self._forms = tuple(forms)
        self._queries = tuple(queries) if packer else ("floats",)
        self.thresholds = tuple(
            f"{form}, query {query} > {threshold:g}"
            for query in self._queries
            for form in self._forms
            for threshold in KERNEL_THRESHOLDS
        )
        self.facts = {"maxsim": list(self.thresholds), **self.facts}

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> Float32[np.ndarray, "K F"]:
        """One score for each of `thresholds`."""
        columns = [
            np.concatenate([self._scores(block) for block in self.similarities(query, database, kind)])
            for kind in self._queries
        ]
        return np.concatenate(columns, axis=1)

    def _scores(self, similarity: Float32[np.ndarray, "K T Q"]) -> Float32[np.ndarray, "K F"]:
        """A column for each form and threshold."""
        of_query, of_database = similarity.max(axis=1, initial=-1), similarity.max(axis=2, initial=-1)
        sums = {"query": (of_query,), "both": (of_query, of_database)}
        if "mutual" in self._forms:
            # Equal similarities, which bits have many of, are best partners alike: their order must not matter.
            chosen = mutual_pairs(similarity, of_query, of_database).any(axis=1)
            sums["mutual"] = (np.where(chosen, of_query, -1),)
        return np.stack(
            [
                sum(np.maximum(best - np.float32(threshold), 0).sum(axis=1) for best in sums[form]) / len(sums[form])
                for form in self._forms
                for threshold in KERNEL_THRESHOLDS
            ],
            axis=1,
        )


def mutual_pairs(
    similarity: Float[np.ndarray, "K T Q"], of_query: Float[np.ndarray, "K Q"], of_database: Float[np.ndarray, "K T"]
) -> Bool[np.ndarray, "K T Q"]:
    """Pairs whose similarity is the largest of both descriptors, which `of_query` and `of_database` hold."""
    return (similarity == of_query[:, None, :]) & (similarity == of_database[:, :, None])


def _unit_signs(packed: UInt8[AnyArray, "*batch n"]) -> Float32[np.ndarray, "*batch 8*n"]:
    """Bits as vectors of ±1 / √(8 n)."""
    signs = np.unpackbits(packed, axis=-1).astype(np.float32) * 2 - 1
    return signs / np.float32(signs.shape[-1] ** 0.5)


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
