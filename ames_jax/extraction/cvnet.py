"""The backbone `cvnet`: stage-3 features of CVNet's ResNet-101 through the release's detector, three scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ames_jax.extraction.images import resize, shrink
from ames_jax.extraction.network import Arrays, NetworkBackbone, standardised
from ames_jax.extraction.network_weights import read_weights
from ames_jax.extraction.resnet import STRIDE, ResNet, resnet_of
from ames_jax.runtime.errors import UserError

# Sides are padded to multiples of it; all images of one padded shape share a compiled program.
BUCKET = 64


class CvnetBackbone(NetworkBackbone):
    """The longer side is at most `max_side` at scale 1."""

    name, global_name = "cvnet", "CVNet GeM, three scales"
    scales = (0.7071, 1.0, 1.4142)
    default_side = 1024
    channels = "BGR"

    @staticmethod
    def weights_file(path: Path | None) -> Path:
        """The given file: it cannot be downloaded here."""
        if path is None:
            raise UserError(
                "the backbone cvnet needs --weights=CVNet_R101.pyth (training: --config.weights), which its authors "
                "publish at https://github.com/sungonce/CVNet"
            )
        return path

    @classmethod
    def read_network(cls, path: Path | None, dtype: str) -> ResNet:
        """The network in the given file."""
        path = cls.weights_file(path)
        return resnet_of(read_weights(path), dtype, str(path))

    @staticmethod
    def widths(network: ResNet) -> tuple[int, int]:
        """Of stage 3 and of the pooled descriptor."""
        return network.config.widths[2], network.config.global_width

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Smaller images stay as they are."""
        return shrink(image, self.max_side)

    def inputs(self, image: np.ndarray, scale: float) -> Arrays:
        """pixels uint8 [H, W, 3], padded, and size int32 [2], the height and width without padding."""
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        pixels = np.pad(resize(image, height, width), ((0, -height % BUCKET), (0, -width % BUCKET), (0, 0)))
        rows, columns = (side // STRIDE for side in pixels.shape[:2])
        row, column = np.divmod(np.arange(rows * columns), columns)
        centres = (np.stack([column, row], 1) * STRIDE + 0.5).astype(np.float32)
        own = np.float32([width, height])
        size = np.array([height, width], np.int32)
        return {"pixels": pixels, "size": size, "valid": (centres < own).all(1), "xy": centres / own}

    @staticmethod
    def features(network: ResNet, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """The stage-3 map and the pooled descriptors."""
        found = network(standardised(batch["pixels"], bgr=True), batch["size"])
        return found.local.reshape(len(found.local), -1, found.local.shape[-1]), found.global_descriptor

    @staticmethod
    def squares(network: ResNet, side: int) -> Callable[[jax.Array], Arrays]:
        """Without padding."""
        return lambda images: {"pixels": images, "size": jnp.full((len(images), 2), side, jnp.int32)}
