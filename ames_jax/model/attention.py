"""Alternating attention over three groups of tokens, computing only the blocks that exist.

The sequence lies in memory as [query | matching | database], so that every set of keys that occurs is a slice:
query with matching token, matching token with database, or all. Who sees whom (paper section 3.1):

                      matching   query   database
  matching (both)        x         x        x
  query, self            x         x
  query, cross           x                  x
  database, self         x                  x
  database, cross        x         x
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ames_jax.model.tokens import layer_norm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class Sequence(NamedTuple):
    """Tokens of B pairs in the order query, matching, database.

    Attributes:
      tokens: [B, Q + 1 + T, d].
      valid: bool [B, Q + 1 + T], or None where nothing is padding. The matching token is always valid.
      queries: Q, where the matching token stands.
    """

    tokens: jax.Array
    valid: jax.Array | None
    queries: int


class SharedQuery(NamedTuple):
    """What the first layer knows of a query before it meets a database image.

    Attributes:
      tokens: [Q, d], as they enter the first layer.
      attended: [Q, d], after the first layer's self block, which reads the query and the matching token alone.
      valid: bool [Q] or None.
      signs: ±1 [Q, bits] for a model that counts matches of bits as well, else None.
    """

    tokens: jax.Array
    attended: jax.Array
    valid: jax.Array | None
    signs: jax.Array | None = None


class CrossWeights(NamedTuple):
    """What a cross block attends to, for B pairs: softmax weights, float32, summing to 1 over the last axis.

    Attributes:
      query: [B, H, Q, 1 + T], of each query token over the matching token and the database tokens.
      matching: [B, H, Q + 1 + T], of the matching token over all.
      database: [B, H, T, Q + 1], of each database token over the query tokens and the matching token.
    """

    query: jax.Array
    matching: jax.Array
    database: jax.Array


def attend(query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array | None, precision: object) -> jax.Array:
    """Softmax attention of rows [B, H, R, h] over keys and values [B, H, C, h]; padding keys (valid False) get no weight.

    The softmax is in float32 whatever the compute type. Returns [B, H, R, h].
    """
    weights = attention_weights(query, key, valid, precision)
    return jnp.einsum("bhrk,bhkc->bhrc", weights.astype(value.dtype), value, precision=precision)


def attention_weights(query: jax.Array, key: jax.Array, valid: jax.Array | None, precision: object) -> jax.Array:
    """The float32 softmax weights [B, H, R, C] of rows [B, H, R, h] over keys [B, H, C, h]; none for padding."""
    scores = jnp.einsum("bhrc,bhkc->bhrk", query * query.shape[-1] ** -0.5, key, precision=precision)
    return _masked_softmax(scores, valid)


def _masked_softmax(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    """float32 softmax over the last axis of [B, H, R, C], leaving out keys with valid [B, C] False."""
    scores = scores.astype(jnp.float32)
    if valid is not None:
        scores = jnp.where(valid[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


class Attention(nnx.Module):
    """Multi-head attention weights (q, k, v fused in one projection) with the ways in which AMES uses them."""

    def __init__(self, width: int, heads: int, dtype: jnp.dtype, precision: object, rngs: nnx.Rngs):
        self.heads, self.precision = heads, precision
        # The release leaves the fused projection at the framework's Xavier-uniform, bound √(6 / (d + 3d)).
        xavier = nnx.initializers.xavier_uniform()
        truncated_normal = nnx.initializers.truncated_normal(stddev=0.02, lower=-2.0, upper=2.0)
        options = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=xavier, **options)
        self.out = nnx.Linear(width, width, kernel_init=truncated_normal, **options)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value projections [B, H, N, h] of tokens [B, N, d].

        Heads come before tokens, so that the products of `attend` find each head's matrix in one piece.
        """
        parts = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = parts.transpose(2, 0, 3, 1, 4)
        return query, key, value

    def merge(self, x: jax.Array) -> jax.Array:
        """Joins heads [B, H, N, h] and applies the output projection, giving [B, N, d]."""
        batch, heads, count, width = x.shape
        return self.out(x.transpose(0, 2, 1, 3).reshape(batch, count, heads * width))

    def over(self, sequence: Sequence, x: jax.Array, cross: bool) -> jax.Array:
        """Every row of `x` [B, Q + 1 + T, d] over the keys that it sees, in a self or a cross block."""
        split = sequence.queries
        query, key, value = self.project(x)

        def rows(which: slice, keys: slice) -> jax.Array:
            valid = None if sequence.valid is None else sequence.valid[:, keys]
            return attend(query[:, :, which], key[:, :, keys], value[:, :, keys], valid, self.precision)

        with_query, with_database = slice(0, split + 1), slice(split, None)
        own, other = (with_database, with_query) if cross else (with_query, with_database)
        groups = [
            rows(slice(0, split), own),
            rows(slice(split, split + 1), slice(None)),
            rows(slice(split + 1, None), other),
        ]
        return self.merge(jnp.concatenate(groups, axis=2))

    def cross_weights(self, sequence: Sequence, x: jax.Array) -> CrossWeights:
        """The weights by which `over(sequence, x, cross=True)` mixes values."""
        split = sequence.queries
        query, key, _ = self.project(x)

        def rows(which: slice, keys: slice) -> jax.Array:
            valid = None if sequence.valid is None else sequence.valid[:, keys]
            return attention_weights(query[:, :, which], key[:, :, keys], valid, self.precision)

        matching = rows(slice(split, split + 1), slice(None))[:, :, 0]
        with_query, with_database = slice(0, split + 1), slice(split, None)
        return CrossWeights(rows(slice(0, split), with_database), matching, rows(slice(split + 1, None), with_query))

    def pool(self, row: jax.Array, parts: list[tuple[jax.Array, jax.Array | None]]) -> jax.Array:
        """One row [B, 1, d] over several parts of keys; the projections of the keys are folded into the row.

        q·(x W_k + b_k) = x·(W_k q) + constant, and the constant falls out of the softmax; Σ a (x W_v + b_v) =
        (Σ a x) W_v + b_v. So no key or value is ever projected, which for one row is nearly all of the work.

        Args:
          row: [B, 1, d].
          parts: (tokens [B, N, d], valid [B, N] or None), or without B where all pairs share them ([N, d], [N]).

        Returns:
          [B, 1, d], after the output projection.
        """
        width = row.shape[-1]
        kernel = self.qkv.kernel[...].astype(row.dtype)
        bias = self.qkv.bias[...].astype(row.dtype)
        by_head = kernel.reshape(width, 3, self.heads, width // self.heads)
        row_query = (jnp.matmul(row[:, 0], kernel[:, :width], precision=self.precision) + bias[None, :width]).reshape(
            -1, self.heads, width // self.heads
        )
        folded = jnp.einsum("bhc,dhc->bhd", row_query, by_head[:, 1], precision=self.precision)
        folded = folded * (width // self.heads) ** -0.5
        scores = [self._part_scores(folded, tokens, valid) for tokens, valid in parts]
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(row.dtype)
        mixed, start = 0, 0
        for tokens, _ in parts:
            count = tokens.shape[-2]
            spec = "bhk,kd->bhd" if tokens.ndim == 2 else "bhk,bkd->bhd"
            mixed = mixed + jnp.einsum(spec, weights[..., start : start + count], tokens, precision=self.precision)
            start += count
        values = jnp.einsum("bhd,dhc->bhc", mixed, by_head[:, 2], precision=self.precision)
        values = values + bias[2 * width :].reshape(1, self.heads, -1)
        return self.merge(values[:, :, None])

    def _part_scores(self, folded: jax.Array, tokens: jax.Array, valid: jax.Array | None) -> jax.Array:
        """float32 scores [B, H, N] of the folded row [B, H, d] against one part of the keys."""
        spec = "bhd,kd->bhk" if tokens.ndim == 2 else "bhd,bkd->bhk"
        scores = jnp.einsum(spec, folded, tokens, precision=self.precision).astype(jnp.float32)
        if valid is None:
            return scores
        valid = valid[None, None] if valid.ndim == 1 else valid[:, None]
        return jnp.where(valid, scores, jnp.finfo(jnp.float32).min)


class Layer(nnx.Module):
    """Self block, cross block, feed-forward, each with a residual; LayerNorm after (post) or before (pre) each."""

    def __init__(
        self, width: int, heads: int, feed_forward: int, activation: str, pre_norm: bool,
        dtype: jnp.dtype, precision: object, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.pre_norm, self.activation = pre_norm, activation
        self.self_attention = Attention(width, heads, dtype, precision, rngs)
        self.cross_attention = Attention(width, heads, dtype, precision, rngs)
        truncated_normal = nnx.initializers.truncated_normal(stddev=0.02, lower=-2.0, upper=2.0)
        options = {"kernel_init": truncated_normal, "dtype": dtype, "precision": precision, "rngs": rngs}
        self.expand = nnx.Linear(width, feed_forward, **options)
        self.contract = nnx.Linear(feed_forward, width, **options)
        self.norm_self = layer_norm(width, dtype, rngs)
        self.norm_cross = layer_norm(width, dtype, rngs)
        self.norm_feed_forward = layer_norm(width, dtype, rngs)

    def _residual(self, x: jax.Array, norm: nnx.LayerNorm, branch: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))

    def _perceptron(self, x: jax.Array) -> jax.Array:
        return self.contract(ACTIVATIONS[self.activation](self.expand(x)))

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        return self._residual(x, self.norm_feed_forward, self._perceptron)

    def _self_block(self, sequence: Sequence) -> Sequence:
        branch = partial(self.self_attention.over, sequence, cross=False)
        return sequence._replace(tokens=self._residual(sequence.tokens, self.norm_self, branch))

    def _cross_block(self, sequence: Sequence) -> Sequence:
        branch = partial(self.cross_attention.over, sequence, cross=True)
        return sequence._replace(tokens=self._residual(sequence.tokens, self.norm_cross, branch))

    def cross_weights(self, sequence: Sequence) -> CrossWeights:
        """What this layer's cross block attends to, for a sequence as it enters the layer."""
        sequence = self._self_block(sequence)
        normed = self.norm_cross(sequence.tokens) if self.pre_norm else sequence.tokens
        return self.cross_attention.cross_weights(sequence, normed)

    def __call__(self, sequence: Sequence) -> Sequence:
        """One whole layer: every token of every group."""
        return self.after_self_block(self._self_block(sequence))

    def after_self_block(self, sequence: Sequence) -> Sequence:
        """The cross block and the feed-forward, for every token."""
        sequence = self._cross_block(sequence)
        return sequence._replace(tokens=self._feed_forward(sequence.tokens))

    def matching_only(self, sequence: Sequence, self_block_done: bool = False) -> jax.Array:
        """The matching token [B, 1, d] after this layer, where nobody needs the others (the last layer of a score)."""
        if not self_block_done:
            sequence = self._self_block(sequence)
        normed = self.norm_cross(sequence.tokens) if self.pre_norm else sequence.tokens
        at = slice(sequence.queries, sequence.queries + 1)
        update = self.cross_attention.pool(normed[:, at], [(normed, sequence.valid)])
        matching = sequence.tokens[:, at] + update
        return self._feed_forward(matching if self.pre_norm else self.norm_cross(matching))

    def share_query(self, query: jax.Array, valid: jax.Array | None, matching: jax.Array) -> SharedQuery:
        """The self block of a query's tokens [Q, d], which needs the matching token [1, d] but no database image."""
        count = query.shape[0]
        together = jnp.concatenate([query, matching])[None]
        keys_valid = None if valid is None else jnp.concatenate([valid, jnp.ones(1, bool)])[None]

        def branch(y: jax.Array) -> jax.Array:
            rows, key, value = self.self_attention.project(y)
            attended = attend(rows[:, :, :count], key, value, keys_valid, self.self_attention.precision)
            return jnp.pad(self.self_attention.merge(attended), ((0, 0), (0, 1), (0, 0)))

        attended = self._residual(together, self.norm_self, branch)[0, :count]
        return SharedQuery(query, attended, valid)

    def join_database(
        self, shared: SharedQuery, matching: jax.Array, database: jax.Array, valid: jax.Array | None
    ) -> Sequence:
        """Ends the first self block: database tokens [B, T, d] and the matching token [1, d] meet the shared query.

        Returns the sequence of B pairs after the self block.
        """
        batch, count = database.shape[0], shared.tokens.shape[0]
        together = jnp.concatenate([jnp.broadcast_to(matching, (batch, *matching.shape)), database], axis=1)
        keys_valid = None if valid is None else jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)

        def branch(y: jax.Array) -> jax.Array:
            rows, key, value = self.self_attention.project(y)
            attended = attend(rows[:, :, 1:], key, value, keys_valid, self.self_attention.precision)
            query_side = self.norm_self(shared.tokens) if self.pre_norm else shared.tokens
            token = self.self_attention.pool(y[:, :1], [(query_side, shared.valid), (y, keys_valid)])
            return jnp.concatenate([token, self.self_attention.merge(attended)], axis=1)

        joined = self._residual(together, self.norm_self, branch)
        query = jnp.broadcast_to(shared.attended, (batch, *shared.attended.shape))
        tokens = jnp.concatenate([query, joined], axis=1)
        return Sequence(tokens, join_valid(shared.valid, valid, batch, count, database.shape[1]), count)


def join_valid(
    query: jax.Array | None, database: jax.Array | None, batch: int, queries: int, databases: int
) -> jax.Array | None:
    """Validity [B, Q + 1 + T] of a sequence from that of its sides ([B, Q] or [Q], [B, T]; None: all real)."""
    if query is None and database is None:
        return None
    query = jnp.ones((batch, queries), bool) if query is None else jnp.broadcast_to(query, (batch, queries))
    database = jnp.ones((batch, databases), bool) if database is None else database
    return jnp.concatenate([query, jnp.ones((batch, 1), bool), database], axis=1)
