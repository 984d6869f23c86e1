"""The backbone `sift`: centred RootSIFT and VLAD on all cores, without a download and without a network."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import STATISTICS_FILE, ExtractedImage, facts_seen
from ames_jax.extraction.images import shrink
from ames_jax.extraction.keypoints import SIFT_WIDTH, Keypoints, detect
from ames_jax.extraction.vlad import learn_axes, learn_centres, normalised, vlad
from ames_jax.runtime.cores import refuse_fork, usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import whole_file

SHIPPED = Path(__file__).parents[1] / "model" / "shipped" / "sift" / "sift_statistics.npz"
DESCRIPTORS, MAX_SIDE = 600, 640
# Histograms that the statistics are learned from: for mean and centres more change nothing that can be measured.
SAMPLE = 20_000


def statistics_of(root: Path) -> str | None:
    """The fingerprint of the SIFT statistics that the descriptors in a folder were made with; None for other backbones."""
    file = root / STATISTICS_FILE
    return SiftStatistics.load(file).fingerprint() if file.is_file() else None


@dataclass(frozen=True)
class SiftStatistics:
    """Statistics of training images: mean float32 [128] of RootSIFT, VLAD centres float32 [C, 128].

    `axes`, float32 [C, 128, 128] or None, decide the kind of VLAD (see `extraction.vlad`). `spread` goes with them: the
    distance between keypoints (see `keypoints.detect`).

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
        """The name of the global descriptor in results."""
        return f"VLAD, {len(self.centres)} centres" + (", local axes" if self.axes is not None else "")

    def fingerprint(self) -> str:
        """A hash, equal where descriptors and a model were made with the same statistics (32 hexadecimal digits)."""
        values = (getattr(self, field.name) for field in fields(self))
        known = (np.asarray(value, np.float32) for value in values if value is not None)
        content = b"".join(np.ascontiguousarray(value).tobytes() for value in known)
        return hashlib.sha256(content).hexdigest()[:32]

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all."""
        axes = {} if self.axes is None else {"axes": self.axes}
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, mean=self.mean, centres=self.centres, spread=self.spread, **axes)

    @classmethod
    def load(cls, path: Path) -> SiftStatistics:
        """Raises UserError when the file is missing, damaged or not written by `save`."""
        try:
            if path.is_file() and not zipfile.is_zipfile(path):  # NumPy would advise to unpickle it
                raise ValueError("it is no .npz file")
            with path.open("rb") as file, np.load(file) as arrays:
                spread = float(arrays["spread"]) if "spread" in arrays else 0.0
                found = cls(arrays["mean"], arrays["centres"], spread, arrays.get("axes"))
            found._check()
            return found
        except Exception as error:
            raise UserError(f"{path}: no SIFT statistics (mean, centres, axes) can be read from it: {error}") from error

    def _check(self) -> None:
        """Raises ValueError where the values are not those of statistics."""
        shapes = {"mean": (SIFT_WIDTH,), "centres": (max(1, len(self.centres)), SIFT_WIDTH)}
        if self.axes is not None:
            shapes["axes"] = (*shapes["centres"], SIFT_WIDTH)
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise ValueError(f"{name} {list(values.shape)}, expected {list(shape)}")
            if values.dtype.kind != "f" or not np.isfinite(values).all():
                raise ValueError(f"{name} of {values.dtype}, expected finite floats")
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread {self.spread}, expected 0 to 1")


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
    return vlad(features, valid, statistics.centres, statistics.axes)


def _root(histogram: np.ndarray) -> np.ndarray:
    """RootSIFT (Arandjelović and Zisserman, CVPR 2012): the square root of the L1-normalised histogram."""
    values = histogram.astype(np.float32).reshape(*histogram.shape[:-1], SIFT_WIDTH)
    return np.sqrt(values / np.maximum(values.sum(-1, keepdims=True), 1e-9))


class SiftBackbone:
    """RootSIFT of grey pixels; see `Backbone`."""

    name, width, together = "sift", SIFT_WIDTH, 32

    @classmethod
    def open(
        cls, *, statistics: Path | None = None, descriptors: int = DESCRIPTORS, max_side: int = MAX_SIDE
    ) -> SiftBackbone:
        """Reads the statistics (default: shipped); raises UserError where there are none."""
        path = Path(statistics or SHIPPED)
        if not path.is_file():
            raise UserError(
                f"{path}: no such SIFT statistics; give --statistics=FILE, e.g. the sift_statistics.npz of the embedded "
                "landmarks (python -m ames_jax.prepare scenes builds and names them)"
            )
        return cls(SiftStatistics.load(path), descriptors=descriptors, max_side=max_side)

    def __init__(self, statistics: SiftStatistics, *, descriptors: int = DESCRIPTORS, max_side: int = MAX_SIDE) -> None:
        self.statistics, self.descriptors, self.max_side = statistics, descriptors, max_side
        self.global_width, self.global_name = statistics.centres.size, statistics.global_name
        self._process, self._libraries = os.getpid(), ThreadpoolController()
        self._threads = ThreadPoolExecutor(usable_cores(), "sift", initializer=_use_one_thread)

    @property
    def settings(self) -> dict[str, Any]:
        """Without the statistics, which every data set keeps its own copy of."""
        return {"name": self.name, "descriptors": self.descriptors, "max_side": self.max_side}

    @property
    def seen(self) -> dict[str, Any]:
        """See `Backbone`."""
        return {**facts_seen(self.max_side, "grey", {}), "statistics": self.statistics.fingerprint()}

    def fit(self, image: np.ndarray) -> np.ndarray:
        """The longer side at most `max_side`."""
        return shrink(image, self.max_side)

    def extract(self, images: Sequence[np.ndarray]) -> list[ExtractedImage]:
        """See `Backbone.extract`; each core takes one image at a time."""
        refuse_fork(self._process, "the backbone sift")
        # The matrices are small, and BLAS's own threads, waiting for each other, would take a third of all time.
        with self._libraries.limit(limits=1, user_api="blas"):
            return list(self._threads.map(self._one, images))

    def _one(self, image: np.ndarray) -> ExtractedImage:
        grey = cv2.cvtColor(self.fit(image), cv2.COLOR_RGB2GRAY)
        found = local_descriptors(grey, self.descriptors, self.statistics)
        return ExtractedImage(found, global_descriptor(found, self.statistics))


def _use_one_thread() -> None:
    """Images run side by side, so OpenCV's own threads would only get in the way."""
    cv2.setNumThreads(1)
