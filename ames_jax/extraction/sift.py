"""SIFT as an extractor: centred RootSIFT local descriptors and a VLAD global descriptor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.keypoints import SIFT_WIDTH, Keypoints, detect
from ames_jax.extraction.vlad import learn_axes, learn_centres, normalised, vlad, vlad_in_axes
from ames_jax.runtime.errors import UserError

# Histograms that the statistics are learned from: for mean and centres more change nothing that can be measured.
SAMPLE = 20_000


@dataclass(frozen=True)
class SiftStatistics:
    """What is learned from training images: mean float32 [128] of RootSIFT, VLAD centres float32 [C, 128].

    `axes`, float32 [C, 128, 128] or None, decide the kind of VLAD (see `extraction.vlad`). `spread` goes with them: how
    far apart the keypoints are (see `keypoints.detect`).

    The mean matters: RootSIFT is non-negative, all its values lie in one corner of the sphere, and the sign of a
    projection (a bit) of uncentred values says little.
    """

    mean: np.ndarray
    centres: np.ndarray
    spread: float = 0.0
    axes: np.ndarray | None = None

    @classmethod
    def learn(
        cls, histogram: np.ndarray, centres: int, seed: int = 0, spread: float = 0.0, axes: bool = False
    ) -> SiftStatistics:
        """From SIFT histograms uint8 [N, 128] of training images; deterministic in its arguments.

        Raises:
          UserError: when there are fewer histograms than centres.
        """
        if len(histogram) < centres:
            raise UserError(f"SIFT statistics: {centres} centres need as many descriptors, found {len(histogram)}")
        rng = np.random.default_rng(seed)
        sample = _root(histogram[np.sort(rng.permutation(len(histogram))[:SAMPLE])])
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        features = normalised(sample - mean)
        found = learn_centres(features, centres, seed)
        return cls(mean, found, spread, learn_axes(features, found) if axes else None)

    @property
    def global_name(self) -> str:
        """How results name the global descriptor."""
        return f"VLAD, {len(self.centres)} centres" + (", local axes" if self.axes is not None else "")

    def fingerprint(self) -> str:
        """What tells whether descriptors and a model were made with the same statistics (32 hexadecimal digits)."""
        values = (getattr(self, field.name) for field in fields(self))
        known = (np.asarray(value, np.float32) for value in values if value is not None)
        content = b"".join(np.ascontiguousarray(value).tobytes() for value in known)
        return hashlib.sha256(content).hexdigest()[:32]

    def save(self, path: Path) -> None:
        axes = {} if self.axes is None else {"axes": self.axes}
        np.savez(path, mean=self.mean, centres=self.centres, spread=self.spread, **axes)

    @classmethod
    def load(cls, path: Path) -> SiftStatistics:
        """Raises UserError when the file is missing, damaged or not written by `save`."""
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                spread = float(arrays["spread"]) if "spread" in arrays else 0.0
                found = cls(arrays["mean"], arrays["centres"], spread, arrays.get("axes"))
            if found.axes is not None and found.axes.shape != (*found.centres.shape, SIFT_WIDTH):
                raise ValueError(f"axes {list(found.axes.shape)} do not fit centres {list(found.centres.shape)}")
            return found
        except Exception as error:
            raise UserError(f"{path}: no SIFT statistics (mean, centres, axes) can be read from it: {error}") from error


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
    """VLAD of the local descriptors [..., N, 128], in local axes where there are any: float32 [..., C · 128] of length 1."""
    features = np.asarray(descriptors.features, np.float32)
    valid = np.ones(features.shape[:-1], bool) if descriptors.valid is None else np.asarray(descriptors.valid)
    if statistics.axes is None:
        return vlad(features, valid, statistics.centres)
    return vlad_in_axes(features, valid, statistics.centres, statistics.axes)


def _root(histogram: np.ndarray) -> np.ndarray:
    """RootSIFT (Arandjelović and Zisserman, CVPR 2012): the square root of the L1-normalised histogram."""
    values = histogram.astype(np.float32).reshape(*histogram.shape[:-1], SIFT_WIDTH)
    return np.sqrt(values / np.maximum(values.sum(-1, keepdims=True), 1e-9))
