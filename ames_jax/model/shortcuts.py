"""The logits of the plain layers with less work. All of it is exact algebra; only the rounding differs.

A score reads the matching token after the last layer and nothing else, and a shortlist has one query for all its images.

*Pooled row.* One row r attends to keys x₁ … x_N, as the matching token does. With q = W_q r + b_q of one head,

    q·(W_k xᵢ + b_k) = (W_kᵀ q)·xᵢ + q·b_k      the last term is equal for all i and falls out of the softmax
    Σ aᵢ (W_v xᵢ + b_v) = W_v (Σ aᵢ xᵢ) + b_v    since Σ aᵢ = 1

so W_k is folded into the row, W_v is applied to the mixture, and no key or value is ever projected: for one row that
is nearly all of the work.

*Shared query.* In the first self block a query token sees the query and the matching token, which enter the model alike
for every image of a shortlist: its output is computed once per query.

*Joined database.* The rest of that block: a database token sees its image and the matching token; the matching token
sees all, as a pooled row over two parts, of which the query's has no batch axis.

*Last row.* After the last layer's self block, whose tokens are the keys of its cross block, only the matching token is
read: the cross block is one pooled row, and the feed-forward is applied to it alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from ames_jax.descriptors import AnyArray
from ames_jax.model.attention import Attention, Layer, Sequence, attend, join_valid

# Keys of one part: tokens [B, N, d] and their validity [B, N] or None; without B ([N, d], [N]) where all pairs share them.
Part = tuple[jax.Array, jax.Array | None]


class SharedQuery(NamedTuple):
    """A query's part of the first layer, before it meets a database image.

    Attributes:
      tokens: [Q, d], as they enter the first layer.
      attended: [Q, d], after the first layer's self block.
      valid: bool [Q] or None.
      vectors: [Q, C] for a model that counts matches as well, else None.
    """

    tokens: jax.Array
    attended: jax.Array
    valid: jax.Array | None
    vectors: jax.Array | None = None


def pooled_row(attention: Attention, row: Float[Array, "B 1 d"], parts: list[Part]) -> Float[Array, "B 1 d"]:
    """Attention of one row over the keys of several parts, after the output projection."""
    heads, width, precision = attention.heads, row.shape[-1], attention.precision
    kernel = attention.qkv.kernel[...].astype(row.dtype)
    bias = attention.qkv.bias[...].astype(row.dtype)
    by_head = kernel.reshape(width, 3, heads, width // heads)
    query = jnp.matmul(row[:, 0], kernel[:, :width], precision=precision) + bias[None, :width]
    query = query.reshape(-1, heads, width // heads)
    folded = jnp.einsum("bhc,dhc->bhd", query, by_head[:, 1], precision=precision) * (width // heads) ** -0.5
    scores = [_scores(folded, tokens, valid, precision) for tokens, valid in parts]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(row.dtype)
    mixed, start = 0, 0
    for tokens, _ in parts:
        count = tokens.shape[-2]
        spec = "bhk,kd->bhd" if tokens.ndim == 2 else "bhk,bkd->bhd"
        mixed = mixed + jnp.einsum(spec, weights[..., start : start + count], tokens, precision=precision)
        start += count
    values = jnp.einsum("bhd,dhc->bhc", mixed, by_head[:, 2], precision=precision)
    values = values + bias[2 * width :].reshape(1, heads, -1)
    return attention.merge(values[:, :, None])


def _scores(
    folded: Float[Array, "B H d"], tokens: jax.Array, valid: jax.Array | None, precision: object
) -> Float32[Array, "B H N"]:
    """Scores of the folded row against one part of the keys."""
    spec = "bhd,kd->bhk" if tokens.ndim == 2 else "bhd,bkd->bhk"
    scores = jnp.einsum(spec, folded, tokens, precision=precision).astype(jnp.float32)
    if valid is None:
        return scores
    valid = valid[None, None] if valid.ndim == 1 else valid[:, None]
    return jnp.where(valid, scores, jnp.finfo(jnp.float32).min)


def share_query(
    layer: Layer, query: Float[Array, "Q d"], valid: Bool[AnyArray, " Q"] | None, matching: Float[Array, "1 d"]
) -> SharedQuery:
    """The first layer's self block of a query's tokens, for all images that it will meet."""
    count = query.shape[0]
    together = jnp.concatenate([query, matching])[None]
    keys_valid = None if valid is None else jnp.concatenate([valid, jnp.ones(1, bool)])[None]

    def branch(y: jax.Array) -> jax.Array:
        rows, key, value = layer.self_attention.project(y)
        attended = attend(rows[:, :, :count], key, value, keys_valid, layer.self_attention.precision)
        return jnp.pad(layer.self_attention.merge(attended), ((0, 0), (0, 1), (0, 0)))

    attended = layer.residual(together, layer.norm_self, branch)[0, :count]
    return SharedQuery(query, attended, valid)


def join_database(
    layer: Layer,
    shared: SharedQuery,
    matching: Float[Array, "1 d"],
    database: Float[Array, "B T d"],
    valid: Bool[AnyArray, "B T"] | None,
) -> Sequence:
    """The sequence of B pairs after the first layer's self block, from a shared query and its database images."""
    batch, count = database.shape[0], shared.tokens.shape[0]
    together = jnp.concatenate([jnp.broadcast_to(matching, (batch, *matching.shape)), database], axis=1)
    keys_valid = None if valid is None else jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)

    def branch(y: jax.Array) -> jax.Array:
        rows, key, value = layer.self_attention.project(y)
        attended = attend(rows[:, :, 1:], key, value, keys_valid, layer.self_attention.precision)
        query_side = layer.norm_self(shared.tokens) if layer.pre_norm else shared.tokens
        token = pooled_row(layer.self_attention, y[:, :1], [(query_side, shared.valid), (y, keys_valid)])
        return jnp.concatenate([token, layer.self_attention.merge(attended)], axis=1)

    joined = layer.residual(together, layer.norm_self, branch)
    query = jnp.broadcast_to(shared.attended, (batch, *shared.attended.shape))
    tokens = jnp.concatenate([query, joined], axis=1)
    return Sequence(tokens, join_valid(shared.valid, valid, batch, count, database.shape[1]), count)


def last_row(layer: Layer, sequence: Sequence) -> Float[Array, "B 1 d"]:
    """The matching token after a layer whose self block is done: the cross block and the feed-forward for it alone."""
    normed = layer.norm_cross(sequence.tokens) if layer.pre_norm else sequence.tokens
    at = slice(sequence.queries, sequence.queries + 1)
    update = pooled_row(layer.cross_attention, normed[:, at], [(normed, sequence.valid)])
    matching = sequence.tokens[:, at] + update
    return layer.feed_forward(matching if layer.pre_norm else layer.norm_cross(matching))
