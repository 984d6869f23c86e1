"""Pixels as the networks want them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# ImageNet's, RGB.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def standardised(pixels: jax.Array, bgr: bool = False) -> jax.Array:
    """RGB uint8 [..., 3] → float32, ImageNet's mean taken off and divided by its deviation; `bgr` turns the channels round."""
    axes = (None,) * (pixels.ndim - 1)
    mean, deviation = (jnp.array(values, jnp.float32)[axes] for values in (MEAN, DEVIATION))
    found = (pixels.astype(jnp.float32) / 255 - mean) / deviation
    return found[..., ::-1] if bgr else found
