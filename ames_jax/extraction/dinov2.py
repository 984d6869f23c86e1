"""The backbone `dinov2`: patch tokens of DINOv2 ViT-B/14 with registers through the release's detector, one scale."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ames_jax.extraction.detector import Detector
from ames_jax.extraction.images import resize
from ames_jax.extraction.network import Arrays, NetworkBackbone, standardised
from ames_jax.extraction.network_weights import read_weights
from ames_jax.extraction.vit import ViT, patches_of, positions_of, vit_of
from ames_jax.runtime.cache import fetch_file
from ames_jax.runtime.errors import UserError

# Images are padded to a multiple of so many patches, and all of one multiple share a compiled program.
BUCKET = 128
# Of the authors of DINOv2, who publish no checksum.
WEIGHTS = "dinov2_vitb14_reg4_pretrain.pth"
WEIGHTS_ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14"


class Dinov2Backbone(NetworkBackbone):
    """Each side becomes the nearest multiple of 14 after the longer has become `max_side`, up or down."""

    name, global_name = "dinov2", "DINOv2 class token"
    default_side = 770

    def __init__(self, network: ViT, detector: Detector, **settings: Any) -> None:
        super().__init__(network, detector, **settings)
        self._patch, grid = network.config.patch, np.asarray(network.positions[...])
        resized = functools.partial(positions_of, grid, antialias=network.config.antialias)
        self._positions = functools.lru_cache(maxsize=16)(resized)

    @staticmethod
    def read_network(path: Path | None, dtype: str) -> ViT:
        """The given file, or the authors', downloaded once."""
        path = path or fetch_file(WEIGHTS, (WEIGHTS_ADDRESS,))
        return vit_of(read_weights(path), dtype=dtype, source=str(path))

    @staticmethod
    def widths(network: ViT) -> tuple[int, int]:
        """Of a patch token and of the class token."""
        return network.config.width, network.config.width

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Each side a multiple of the patch's, at least one patch."""
        scale = self.max_side / max(image.shape[:2]) / self._patch
        height, width = (max(1, round(side * scale)) * self._patch for side in image.shape[:2])
        return resize(image, height, width)

    def inputs(self, image: np.ndarray, scale: float) -> Arrays:
        """patches uint8 [P, 3 · patch²] and positions float32 [P, d]; there is one scale."""
        rows, columns = (side // self._patch for side in image.shape[:2])
        count = rows * columns
        row, column = np.divmod(np.arange(count), columns)
        centres = (np.stack([column, row], 1) + 0.5) / [columns, rows]
        arrays = {"patches": patches_of(image, self._patch), "positions": self._positions(rows, columns)}
        arrays |= {"valid": np.ones(count, bool), "xy": centres.astype(np.float32)}
        missing = -count % BUCKET
        return {name: np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)]) for name, x in arrays.items()}

    @staticmethod
    def features(network: ViT, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Patch tokens and class tokens."""
        patches = batch["patches"]
        pixels = standardised(patches.reshape(*patches.shape[:2], -1, 3)).reshape(patches.shape)
        tokens = network(pixels, batch["positions"], batch["valid"])
        return tokens.patches, tokens.class_token

    @staticmethod
    def squares(network: ViT, side: int) -> Callable[[jax.Array], Arrays]:
        """Without padding; raises UserError where the side is no multiple of a patch's."""
        patch, count = network.config.patch, side // network.config.patch
        if side % patch:
            raise UserError(f"--config.side={side}: the network takes multiples of {patch}")
        positions = positions_of(np.asarray(network.positions[...]), count, count, network.config.antialias)

        def batch_of(images: jax.Array) -> Arrays:
            valid = jnp.ones((len(images), count * count), bool)
            return {"patches": patches_of(images, patch), "positions": jnp.asarray(positions)[None], "valid": valid}

        return batch_of
