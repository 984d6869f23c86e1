"""Frozen networks as functions from square images to their local features, for training a detector on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.extraction.cvnet import weights_file as cvnet_file
from ames_jax.extraction.dinov2 import weights_file as dinov2_file
from ames_jax.extraction.network_weights import read_weights, resnet_of, vit_of
from ames_jax.extraction.pixels import standardised
from ames_jax.extraction.resnet import ResNet
from ames_jax.extraction.vit import ViT, positions_of
from ames_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """`features(parameters, images)`: uint8 [B, S, S, 3] → float32 [B, P, width]."""

    features: Callable[[Any, jax.Array], jax.Array]
    parameters: Any
    width: int


def open_network(backbone: str, weights: str, dtype: str, side: int) -> FeatureMap:
    """The network of a backbone for images of one size; raises UserError as `open_backbone` does."""
    path = Path(weights) if weights else None
    if backbone == "dinov2":
        path = dinov2_file(path)
        return vit_features(vit_of(read_weights(path), dtype=dtype, source=str(path)), side)
    if backbone == "cvnet":
        path = cvnet_file(path)
        return resnet_features(resnet_of(read_weights(path), dtype, str(path)), side)
    raise UserError(f"--config.backbone={backbone}: a detector is trained for dinov2 or cvnet")


def vit_features(network: ViT, side: int) -> FeatureMap:
    """Patch tokens; raises UserError where the side is no multiple of a patch's."""
    config = network.config
    if side % config.patch:
        raise UserError(f"--config.side={side}: the network takes multiples of {config.patch}")
    count = side // config.patch
    positions = positions_of(np.asarray(network.positions[...]), count, count, config.antialias)
    graph, parameters = nnx.split(network)

    def features(parameters: Any, images: jax.Array) -> jax.Array:
        batch = len(images)
        split = standardised(images).reshape(batch, count, config.patch, count, config.patch, 3).swapaxes(2, 3)
        valid = jnp.ones((batch, count * count), bool)
        return nnx.merge(graph, parameters)(
            split.reshape(batch, count * count, -1), jnp.asarray(positions)[None], valid
        ).patches

    return FeatureMap(features, parameters, config.width)


def resnet_features(network: ResNet, side: int) -> FeatureMap:
    """Positions of the stage-3 map."""
    graph, parameters = nnx.split(network)

    def features(parameters: Any, images: jax.Array) -> jax.Array:
        sizes = jnp.full((len(images), 2), side, jnp.int32)
        local = nnx.merge(graph, parameters)(standardised(images, bgr=True), sizes).local
        return local.reshape(len(images), -1, local.shape[-1])

    return FeatureMap(features, parameters, network.config.widths[2])
