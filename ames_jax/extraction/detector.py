"""The detector of the release: weighs the local features of a backbone and replaces each by a projection of itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

NORM_EPSILON = 1e-5


class Detector(nnx.Module):
    """`detector(features)` → features of length 1 and their weights (conv 1 × 1, batch norm, ReLU, conv 1 × 1, softplus).

    The projected feature is taken before the ReLU.
    """

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        precision = jax.lax.Precision.HIGHEST
        self.project = nnx.Linear(width, width, precision=precision, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, epsilon=NORM_EPSILON, rngs=rngs)
        self.weigh = nnx.Linear(width, 1, precision=precision, rngs=rngs)

    def __call__(self, features: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """float32 features [..., C] → features [..., C], weights [...]; `train` normalises by the batch's own statistics."""
        projected = self.norm(self.project(features), use_running_average=not train)
        weights = jax.nn.softplus(self.weigh(jax.nn.relu(projected))[..., 0])
        return unit_length(projected), weights


def strongest(features: jax.Array, weights: jax.Array, valid: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """The `count` features of each image with the largest weights, falling; padding comes last.

    Args:
      features: [B, P, C]; weights: [B, P], at least 0; valid: bool [B, P].
      count: how many; all where there are fewer.

    Returns:
      features [B, k, C], weights [B, k] (-1 for padding), int32 rows of P [B, k].
    """
    ranked, rows = jax.lax.top_k(jnp.where(valid, weights, -1.0), min(count, weights.shape[1]))
    return jnp.take_along_axis(features, rows[..., None], 1), ranked, rows


def unit_length(x: jax.Array) -> jax.Array:
    """Divides the last axis by its Euclidean norm; a zero vector stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
