"""Losses of teacher and student on triplets (paper section 3.3; reference recipe: β = 10)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def pair_labels(triplets: int) -> jax.Array:
    """Labels float32 [2·triplets] of the pairs of a batch: (anchor, positive) = 1 and (anchor, negative) = 0 in turn."""
    return jnp.tile(jnp.array([1.0, 0.0], jnp.float32), triplets)


def matching_loss(logits: jax.Array, labels: jax.Array, real: jax.Array, total: jax.Array) -> jax.Array:
    """Binary cross-entropy of logits [B] against labels [B], summed over the real pairs (bool [B]) and divided by `total`.

    `total` is the number of real pairs of the whole step, of which these may be a share: the shares add up to the mean.
    """
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels) * real) / total


def distillation_loss(student: jax.Array, teacher: jax.Array, kept: jax.Array, total: jax.Array) -> jax.Array:
    """Squared error between final-layer tokens [B, N, d], meaned over d, summed over the kept (bool [B, N]), over `total`.

    `total` is the number of kept tokens of the whole step, as in `matching_loss`.
    """
    squared = jnp.mean(jnp.square(student - teacher), axis=-1)
    return jnp.sum(squared * kept) / total
