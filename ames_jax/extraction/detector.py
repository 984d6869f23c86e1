"""The detector of the release: weighs the local features of a backbone and replaces each by a projection of itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.extraction.network_weights import Weights, check_names, fill

NORM_EPSILON = 1e-5
# The release's names → ours.
RELEASED = {
    "conv1.weight": ("project", "kernel"), "conv1.bias": ("project", "bias"),
    "bn.weight": ("norm", "scale"), "bn.bias": ("norm", "bias"),
    "bn.running_mean": ("norm", "mean"), "bn.running_var": ("norm", "var"),
    "conv2.weight": ("weigh", "kernel"), "conv2.bias": ("weigh", "bias"),
}  # fmt: skip


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


def detector_of(weights: Weights, source: str = "weights") -> Detector:
    """The detector of a release `*_detector.pt`; errors as `vit_of`."""
    check_names(weights, RELEASED, source, ignored="num_batches_tracked")
    values = {path: _turned(weights[name]) for name, path in RELEASED.items()}
    return fill(lambda: Detector(len(weights["conv1.bias"]), nnx.Rngs(0)), values, source)


def detector_weights(detector: Detector) -> dict[str, np.ndarray]:
    """The detector under the release's names and in its layout; `detector_of` gives back the same."""
    values = {name: getattr(getattr(detector, layer), part)[...] for name, (layer, part) in RELEASED.items()}
    return {name: np.ascontiguousarray(_turned(value), np.float32) for name, value in values.items()}


def _turned(value: Any) -> Any:
    """A 1 × 1 convolution [out, in, 1, 1] of the release as a matrix [in, out] of ours, or back; others as they are."""
    return value[:, :, 0, 0].T if value.ndim == 4 else value.T[:, :, None, None] if value.ndim == 2 else value
