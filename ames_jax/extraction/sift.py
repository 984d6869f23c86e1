"""SIFT as an extractor: centred RootSIFT local descriptors and a VLAD global descriptor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.errors import UserError
from ames_jax.extraction.keypoints import SIFT_WIDTH, Keypoints, detect
from ames_jax.extraction.vlad import learn_centres, normalised, vlad

# Histograms that the statistics are learned from; more change nothing that can be measured.
SAMPLE = 20_000


@dataclass(frozen=True)
class SiftStatistics:
    """What is learned from training images: mean float32 [128] of RootSIFT, VLAD centres float32 [C, 128].

    `spread` goes with them: how far apart the keypoints are (see `keypoints.detect`).

    The mean matters: RootSIFT is non-negative, all its values lie in one corner of the sphere, and the sign of a
    projection (a bit) of uncentred values says little.
    """

    mean: np.ndarray
    centres: np.ndarray
    spread: float = 0.0

    @classmethod
    def learn(cls, histogram: np.ndarray, centres: int, seed: int = 0, spread: float = 0.0) -> SiftStatistics:
        """From SIFT histograms uint8 [N, 128] of training images; deterministic in its arguments.

        Raises:
          UserError: when there are fewer histograms than centres.
        """
        if len(histogram) < centres:
            raise UserError(f"SIFT statistics: {centres} centres need as many descriptors, found {len(histogram)}")
        rng = np.random.default_rng(seed)
        sample = _root(histogram[np.sort(rng.permutation(len(histogram))[:SAMPLE])])
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        return cls(mean, learn_centres(normalised(sample - mean), centres, seed), spread)

    def fingerprint(self) -> str:
        """What tells whether descriptors and a model were made with the same statistics (32 hexadecimal digits)."""
        values = (np.asarray(getattr(self, field.name), np.float32) for field in fields(self))
        content = b"".join(np.ascontiguousarray(value).tobytes() for value in values)
        return hashlib.sha256(content).hexdigest()[:32]

    def save(self, path: Path) -> None:
        np.savez(path, mean=self.mean, centres=self.centres, spread=self.spread)

    @classmethod
    def load(cls, path: Path) -> SiftStatistics:
        """Raises UserError when the file is missing, damaged or not written by `save`."""
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return cls(arrays["mean"], arrays["centres"], float(arrays["spread"]) if "spread" in arrays else 0.0)
        except Exception as error:
            raise UserError(f"{path}: no SIFT statistics (mean, centres) can be read from it: {error}") from error


def describe(histogram: np.ndarray, statistics: SiftStatistics) -> np.ndarray:
    """SIFT histograms uint8 [..., 128] → RootSIFT minus its mean, float32 [..., 128] of length 1."""
    return normalised(_root(histogram) - statistics.mean)


def local_descriptors(image: np.ndarray, count: int, statistics: SiftStatistics) -> DescriptorSet:
    """The strongest `count` local descriptors of a grey image uint8 [H, W]; fewer where it has fewer keypoints.

    Returns:
      features float32 [N, 128] of length 1, xy [N, 2] in 0..1, scale [N] (diameter, pixels), weight [N] (falling).
    """
    return as_descriptors(detect(image, count, statistics.spread), statistics)


def as_descriptors(keypoints: Keypoints, statistics: SiftStatistics) -> DescriptorSet:
    """N keypoints as a set, float32 [N, 128], in their order; see `local_descriptors`."""
    features = describe(keypoints.histogram, statistics)
    return DescriptorSet(features, None, keypoints.xy, keypoints.scale, keypoints.weight)


def global_descriptor(descriptors: DescriptorSet, statistics: SiftStatistics) -> np.ndarray:
    """VLAD of the local descriptors [..., N, 128]: float32 [..., C · 128] of length 1."""
    features = np.asarray(descriptors.features, np.float32)
    valid = np.ones(features.shape[:-1], bool) if descriptors.valid is None else np.asarray(descriptors.valid)
    return vlad(features, valid, statistics.centres)


def _root(histogram: np.ndarray) -> np.ndarray:
    """RootSIFT (Arandjelović and Zisserman, CVPR 2012): the square root of the L1-normalised histogram."""
    values = histogram.astype(np.float32).reshape(*histogram.shape[:-1], SIFT_WIDTH)
    return np.sqrt(values / np.maximum(values.sum(-1, keepdims=True), 1e-9))
