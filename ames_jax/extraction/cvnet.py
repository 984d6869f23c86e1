"""The backbone `cvnet`: stage-3 features of CVNet's ResNet-101 through the release's detector, three scales."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import Extracted
from ames_jax.extraction.batches import Batches, Item
from ames_jax.extraction.detector import Detector, strongest, unit_length
from ames_jax.extraction.images import resize, shrink
from ames_jax.extraction.network_weights import detector_of, read_weights, resnet_of
from ames_jax.extraction.pixels import standardised
from ames_jax.extraction.resnet import STRIDE, ResNet
from ames_jax.extraction.vlad import normalised
from ames_jax.runtime.cache import ADDRESSES, fetch_file
from ames_jax.runtime.errors import UserError

DESCRIPTORS, MAX_SIDE = 700, 1024
SCALES = (0.7071, 1.0, 1.4142)
# Sides are padded to multiples of it; all images of one padded shape share a compiled program.
BUCKET = 64


def open_cvnet(
    *,
    weights: Path | None = None,
    detector: Path | None = None,
    descriptors: int = DESCRIPTORS,
    max_side: int = MAX_SIDE,
    dtype: str = "float32",
    batch: int | None = None,
) -> CvnetBackbone:
    """Reads both networks; raises UserError where one cannot be had or does not fit."""
    path = weights_file(weights)
    detector_path = detector or fetch_file("cvnet_detector.pt", ADDRESSES)
    backbone = CvnetBackbone(
        resnet_of(read_weights(path), dtype, str(path)),
        detector_of(read_weights(detector_path), source=str(detector_path)),
        descriptors=descriptors, max_side=max_side, batch=batch,
    )  # fmt: skip
    backbone.settings |= {"weights": str(path), "detector": detector and str(detector), "dtype": dtype}
    return backbone


def weights_file(given: Path | None) -> Path:
    """The file of the network, which cannot be downloaded here; raises UserError where none is given."""
    if given is None:
        raise UserError(
            "the backbone cvnet needs --weights=CVNet_R101.pyth (training: --config.weights), which its authors publish "
            "at https://github.com/sungonce/CVNet"
        )
    return given


class CvnetBackbone:
    """See `Backbone`. `scale` of a descriptor is the number of its scale, 0 to 2, as in the release."""

    name, global_name = "cvnet", "CVNet GeM, three scales"

    def __init__(
        self,
        network: ResNet,
        detector: Detector,
        *,
        descriptors: int = DESCRIPTORS,
        max_side: int = MAX_SIDE,
        batch: int | None = None,
    ) -> None:
        """`batch`: pictures (of one scale) a device at a time."""
        self.width, self.global_width = network.config.widths[2], network.config.global_width
        self.descriptors, self.max_side = descriptors, max_side
        self.settings: dict[str, Any] = {"name": self.name, "descriptors": descriptors, "max_side": max_side}
        graph, parameters = nnx.split((network, detector))
        self._batches = Batches(functools.partial(_forward, graph, descriptors), parameters, batch)
        self.together = max(16, 4 * self._batches.most)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """The longer side at most `max_side` at scale 1."""
        return shrink(image, self.max_side)

    def extract(self, images: Sequence[np.ndarray]) -> list[Extracted]:
        """See `Backbone.extract`."""
        fitted = [self.fit(image) for image in images]
        results = self._batches.run([_item(image, scale) for image in fitted for scale in SCALES])
        return [self._joined(results[i : i + len(SCALES)]) for i in range(0, len(results), len(SCALES))]

    def _joined(self, scales: Sequence[dict[str, np.ndarray]]) -> Extracted:
        """One image from its results at all scales: the strongest of all, and the mean of the global descriptors."""
        weights = np.concatenate([found["weights"] for found in scales])
        order = np.argsort(-weights, kind="stable")[: self.descriptors]
        order = order[weights[order] >= 0]
        features, xy = (np.concatenate([found[name] for found in scales])[order] for name in ("features", "xy"))
        scale = np.repeat(np.arange(len(scales), dtype=np.float32), [len(found["weights"]) for found in scales])[order]
        mean = normalised(np.mean([found["global_descriptor"] for found in scales], 0))
        return Extracted(DescriptorSet(features, None, xy, scale, weights[order]), mean)


def _item(image: np.ndarray, scale: float) -> Item:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    pixels = resize(image, height, width)
    padding = ((0, -height % BUCKET), (0, -width % BUCKET), (0, 0))
    return {"pixels": np.pad(pixels, padding), "size": np.array([height, width], np.int32)}


def _forward(
    graph: nnx.GraphDef, descriptors: int, parameters: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    network, detector = nnx.merge(graph, parameters)
    sizes = batch["size"]
    found = network(standardised(batch["pixels"], bgr=True), sizes)
    rows, columns = found.local.shape[1:3]
    place = jnp.arange(rows * columns)
    centres = jnp.stack([place % columns, place // columns], 1) * STRIDE + 0.5  # of pixels, [P, 2]
    own = sizes[:, None, ::-1]
    valid = (centres[None] < own).all(-1)
    features, weights = detector(found.local.reshape(len(sizes), rows * columns, -1))
    features, weights, chosen = strongest(features, weights, valid, descriptors)
    return {
        "features": features, "weights": weights, "xy": jnp.take(centres, chosen, axis=0) / own,
        "global_descriptor": unit_length(found.global_descriptor),
    }  # fmt: skip
