"""Losses of teacher and student on triplets (paper section 3.3; reference recipe: β = 10)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def pair_labels(triplets: int) -> jax.Array:
    """Labels float32 [2·triplets] of the pairs of a batch: (anchor, positive) = 1 and (anchor, negative) = 0 in turn."""
    return jnp.tile(jnp.array([1.0, 0.0], jnp.float32), triplets)


def matching_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of logits [B] against labels [B]."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def distillation_loss(student: jax.Array, teacher: jax.Array, kept: jax.Array) -> jax.Array:
    """Mean squared error between final-layer tokens [B, N, d], over the tokens that are real for the student (kept [B, N])."""
    squared = jnp.mean(jnp.square(student - teacher), axis=-1)
    return jnp.sum(squared * kept) / jnp.sum(kept)
