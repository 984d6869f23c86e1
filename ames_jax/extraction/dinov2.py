"""The backbone `dinov2`: patch tokens of DINOv2 ViT-B/14 with registers through the release's detector, one scale."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import Extracted
from ames_jax.extraction.batches import Batches, Item
from ames_jax.extraction.detector import Detector, strongest, unit_length
from ames_jax.extraction.images import resize
from ames_jax.extraction.network_weights import detector_of, read_weights, vit_of
from ames_jax.extraction.pixels import standardised
from ames_jax.extraction.vit import ViT, patches_of, positions_of
from ames_jax.runtime.cache import ADDRESSES, fetch_file

DESCRIPTORS, MAX_SIDE = 700, 770
# Images are padded to a multiple of so many patches, and all of one multiple share a compiled program.
BUCKET = 128
# Of the authors of DINOv2, who publish no checksum.
WEIGHTS = "dinov2_vitb14_reg4_pretrain.pth"
WEIGHTS_ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14"


def open_dinov2(
    *,
    weights: Path | None = None,
    detector: Path | None = None,
    descriptors: int = DESCRIPTORS,
    max_side: int = MAX_SIDE,
    dtype: str = "float32",
    batch: int | None = None,
) -> Dinov2Backbone:
    """Reads both networks, downloaded where no path is given; raises UserError where one cannot be had or does not fit."""
    path = weights_file(weights)
    detector_path = detector or fetch_file("dinov2_detector.pt", ADDRESSES)
    backbone = Dinov2Backbone(
        vit_of(read_weights(path), dtype=dtype, source=str(path)),
        detector_of(read_weights(detector_path), source=str(detector_path)),
        descriptors=descriptors, max_side=max_side, batch=batch,
    )  # fmt: skip
    backbone.settings |= {"weights": weights and str(weights), "detector": detector and str(detector), "dtype": dtype}
    return backbone


def weights_file(given: Path | None) -> Path:
    """The file of the network: the given one, or the authors', downloaded once."""
    return given or fetch_file(WEIGHTS, (WEIGHTS_ADDRESS,))


class Dinov2Backbone:
    """See `Backbone`. Each side becomes the nearest multiple of 14 after the longer has become `max_side`, up or down."""

    name, global_name = "dinov2", "DINOv2 class token"

    def __init__(
        self,
        network: ViT,
        detector: Detector,
        *,
        descriptors: int = DESCRIPTORS,
        max_side: int = MAX_SIDE,
        batch: int | None = None,
    ) -> None:
        """`batch`: images a device at a time."""
        self.width = self.global_width = network.config.width
        self.descriptors, self.max_side, self._patch = descriptors, max_side, network.config.patch
        self.settings: dict[str, Any] = {"name": self.name, "descriptors": descriptors, "max_side": max_side}
        grid = np.asarray(network.positions[...])
        self._positions = functools.lru_cache(maxsize=16)(
            functools.partial(positions_of, grid, antialias=network.config.antialias)
        )
        graph, parameters = nnx.split((network, detector))
        self._batches = Batches(functools.partial(_forward, graph, descriptors), parameters, batch)
        self.together = max(16, 4 * self._batches.most)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Each side a multiple of the patch's, at least one patch."""
        scale = self.max_side / max(image.shape[:2]) / self._patch
        height, width = (max(1, round(side * scale)) * self._patch for side in image.shape[:2])
        return resize(image, height, width)

    def extract(self, images: Sequence[np.ndarray]) -> list[Extracted]:
        """See `Backbone.extract`."""
        fitted = [self.fit(image) for image in images]
        results = self._batches.run([self._item(image) for image in fitted])
        return [self._extracted(found, image.shape[1] // self._patch) for found, image in zip(results, fitted)]

    def _item(self, image: np.ndarray) -> Item:
        patches = patches_of(image, self._patch)
        positions = self._positions(image.shape[0] // self._patch, image.shape[1] // self._patch)
        count = len(patches)
        padding = ((0, -count % BUCKET), (0, 0))
        valid = np.arange(count + -count % BUCKET) < count
        return {"patches": np.pad(patches, padding), "positions": np.pad(positions, padding), "valid": valid}

    def _extracted(self, found: dict[str, np.ndarray], columns: int) -> Extracted:
        real = slice(int((found["weights"] >= 0).sum()))
        return Extracted(
            DescriptorSet(
                found["features"][real], None, _centres(found["rows"][real], columns, found["patches"]),
                np.zeros(real.stop, np.float32), found["weights"][real],
            ),
            found["global_descriptor"],
        )  # fmt: skip


def _centres(rows: np.ndarray, columns: int, patches: int) -> np.ndarray:
    """float32 [N, 2]: centres of patches as a share of the image."""
    places = np.stack([rows % columns, rows // columns], 1) + 0.5
    return (places / [columns, patches // columns]).astype(np.float32)


def _forward(
    graph: nnx.GraphDef, descriptors: int, parameters: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    network, detector = nnx.merge(graph, parameters)
    patches = batch["patches"]
    pixels = standardised(patches.reshape(*patches.shape[:2], -1, 3)).reshape(patches.shape)
    tokens = network(pixels, batch["positions"], batch["valid"])
    features, weights = detector(tokens.patches)
    features, weights, rows = strongest(features, weights, batch["valid"], descriptors)
    return {
        "features": features, "weights": weights, "rows": rows, "patches": batch["valid"].sum(1),
        "global_descriptor": unit_length(tokens.class_token),
    }  # fmt: skip
