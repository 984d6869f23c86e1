"""The layer of the paper: alternating attention over three groups of tokens, computing only the blocks that exist.

The sequence lies in memory as [query | matching | database], so that every set of keys that occurs is a slice:
query with matching token, matching token with database, or all. Who sees whom (paper section 3.1):

                      matching   query   database
  matching (both)        x         x        x
  query, self            x         x
  query, cross           x                  x
  database, self         x                  x
  database, cross        x         x

Here every token is computed. Less work for the same scores: `shortcuts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from ames_jax.descriptors import AnyArray
from ames_jax.model.tokens import layer_norm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


Size = int | Any  # a symbol in exported programs, which take any size


class Sequence(NamedTuple):
    """Tokens of B pairs in the order query, matching, database.

    Attributes:
      tokens: [B, Q + 1 + T, d].
      valid: bool [B, Q + 1 + T], or None where nothing is padding. The matching token is always valid.
      queries: Q, where the matching token stands.
    """

    tokens: jax.Array
    valid: jax.Array | None
    queries: Size

    def valid_at(self, keys: slice) -> Bool[Array, "B C"] | None:
        """The validity of some of the tokens, as keys."""
        return None if self.valid is None else self.valid[:, keys]


class CrossWeights(NamedTuple):
    """Softmax weights of a cross block for B pairs: float32, summing to 1 over the last axis.

    Attributes:
      query: [B, H, Q, 1 + T], of each query token over the matching token and the database tokens.
      matching: [B, H, Q + 1 + T], of the matching token over all.
      database: [B, H, T, Q + 1], of each database token over the query tokens and the matching token.
    """

    query: jax.Array
    matching: jax.Array
    database: jax.Array


def visible(queries: Size, cross: bool) -> tuple[tuple[slice, slice], ...]:
    """Rows of a sequence and the keys that they see in a self or cross block: query, matching token, database."""
    with_query, with_database = slice(0, queries + 1), slice(queries, None)
    of_query, of_database = (with_database, with_query) if cross else (with_query, with_database)
    return (
        (slice(0, queries), of_query),
        (slice(queries, queries + 1), slice(None)),
        (slice(queries + 1, None), of_database),
    )


def attention_weights(
    query: Float[Array, "B H R h"], key: Float[Array, "B H C h"], valid: Bool[Array, "B C"] | None, precision: object
) -> Float32[Array, "B H R C"]:
    """Softmax weights of rows over keys, float32 whatever the compute type; padding (valid False) gets none."""
    scores = jnp.einsum("bhrc,bhkc->bhrk", query * query.shape[-1] ** -0.5, key, precision=precision)
    scores = scores.astype(jnp.float32)
    if valid is not None:
        scores = jnp.where(valid[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def attend(
    query: Float[Array, "B H R h"],
    key: Float[Array, "B H C h"],
    value: Float[Array, "B H C h"],
    valid: Bool[Array, "B C"] | None,
    precision: object,
) -> Float[Array, "B H R h"]:
    """Softmax attention of rows over keys and values."""
    weights = attention_weights(query, key, valid, precision)
    return jnp.einsum("bhrk,bhkc->bhrc", weights.astype(value.dtype), value, precision=precision)


class Attention(nnx.Module):
    """Multi-head attention in which each group of a sequence sees the groups of the table above; q, k, v in one kernel."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, precision: object, rngs: nnx.Rngs):
        self.heads, self.precision = heads, precision
        # The release leaves the fused projection at the framework's Xavier-uniform, bound √(6 / (d + 3d)).
        xavier = nnx.initializers.xavier_uniform()
        truncated_normal = nnx.initializers.truncated_normal(stddev=0.02, lower=-2.0, upper=2.0)
        options = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=xavier, **options)
        self.out = nnx.Linear(width, width, kernel_init=truncated_normal, **options)

    def __call__(self, x: Float[Array, "B N d"], sequence: Sequence, *, cross: bool) -> Float[Array, "B N d"]:
        """Attention of the tokens `x` of a sequence (normed, or as they are) in a self or a cross block."""
        query, key, value = self.project(x)
        groups = [
            attend(query[:, :, rows], key[:, :, keys], value[:, :, keys], sequence.valid_at(keys), self.precision)
            for rows, keys in visible(sequence.queries, cross)
        ]
        return self.merge(jnp.concatenate(groups, axis=2))

    def cross_weights(self, x: Float[Array, "B N d"], sequence: Sequence) -> CrossWeights:
        """The weights by which a cross block mixes values."""
        query, key, _ = self.project(x)
        of_query, of_matching, of_database = (
            attention_weights(query[:, :, rows], key[:, :, keys], sequence.valid_at(keys), self.precision)
            for rows, keys in visible(sequence.queries, cross=True)
        )
        return CrossWeights(of_query, of_matching[:, :, 0], of_database)

    def project(self, x: Float[Array, "B N d"]) -> tuple[Float[Array, "B H N h"], ...]:
        """Query, key and value projections of tokens.

        Heads come before tokens, so that the products of `attend` find each head's matrix in one piece.
        """
        parts = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = parts.transpose(2, 0, 3, 1, 4)
        return query, key, value

    def merge(self, x: Float[Array, "B H N h"]) -> Float[Array, "B N d"]:
        """The heads joined, and the output projection."""
        batch, heads, count, width = x.shape
        return self.out(x.transpose(0, 2, 1, 3).reshape(batch, count, heads * width))


class Layer(nnx.Module):
    """Self block, cross block, feed-forward, each with a residual; LayerNorm after (post) or before (pre) each."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        *,
        activation: str,
        pre_norm: bool,
        dtype: jnp.dtype,
        precision: object,
        rngs: nnx.Rngs,
    ):
        self.pre_norm, self.activation = pre_norm, activation
        options = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.self_attention = Attention(width, heads, **options)
        self.cross_attention = Attention(width, heads, **options)
        truncated_normal = nnx.initializers.truncated_normal(stddev=0.02, lower=-2.0, upper=2.0)
        self.expand = nnx.Linear(width, feed_forward, kernel_init=truncated_normal, **options)
        self.contract = nnx.Linear(feed_forward, width, kernel_init=truncated_normal, **options)
        self.norm_self = layer_norm(width, dtype, rngs)
        self.norm_cross = layer_norm(width, dtype, rngs)
        self.norm_feed_forward = layer_norm(width, dtype, rngs)

    def __call__(self, sequence: Sequence) -> Sequence:
        """One whole layer: every token of every group."""
        return self.after_self_block(self.self_block(sequence))

    def self_block(self, sequence: Sequence) -> Sequence:
        """Each side reads itself and the matching token, which reads all."""
        attention = partial(self.self_attention, sequence=sequence, cross=False)
        return sequence._replace(tokens=self.residual(sequence.tokens, self.norm_self, attention))

    def after_self_block(self, sequence: Sequence) -> Sequence:
        """The cross block, in which each side reads the other one and the matching token, and the feed-forward."""
        attention = partial(self.cross_attention, sequence=sequence, cross=True)
        tokens = self.residual(sequence.tokens, self.norm_cross, attention)
        return sequence._replace(tokens=self.feed_forward(tokens))

    def feed_forward(self, x: Float[Array, "B N d"]) -> Float[Array, "B N d"]:
        """Two linear maps with the activation between them, on every token by itself."""
        activate = ACTIVATIONS[self.activation]
        return self.residual(x, self.norm_feed_forward, lambda y: self.contract(activate(self.expand(y))))

    def residual(
        self, x: Float[Array, "B N d"], norm: nnx.LayerNorm, branch: Callable[[jax.Array], jax.Array]
    ) -> Float[Array, "B N d"]:
        """A block around its branch, normed before or after."""
        return x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))

    def cross_weights(self, sequence: Sequence) -> CrossWeights:
        """The attention weights of this layer's cross block, for a sequence as it enters the layer."""
        sequence = self.self_block(sequence)
        normed = self.norm_cross(sequence.tokens) if self.pre_norm else sequence.tokens
        return self.cross_attention.cross_weights(normed, sequence)


def join_valid(
    query: Bool[AnyArray, "*B Q"] | None,
    database: Bool[AnyArray, "K T"] | None,
    batch: Size,
    queries: Size,
    databases: Size,
) -> Bool[Array, "K N"] | None:
    """Validity of a sequence (N = Q + 1 + T) from that of its sides; None: all real."""
    if query is None and database is None:
        return None
    query = jnp.ones((batch, queries), bool) if query is None else jnp.broadcast_to(query, (batch, queries))
    database = jnp.ones((batch, databases), bool) if database is None else database
    return jnp.concatenate([query, jnp.ones((batch, 1), bool), database], axis=1)
