"""The hand-made match kernel (see `match_kernel`) as a part of a binary model, in JAX: what the transformer adds to."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def matched(
    query: jax.Array,
    database: jax.Array,
    query_valid: jax.Array | None,
    database_valid: jax.Array | None,
    threshold: float,
) -> jax.Array:
    """Sum over the query's descriptors of max(0, best cosine in the database image − threshold): float32 [B].

    Args:
      query: ±1 [B, Q, bits], or [Q, bits] for one query against all; query_valid: bool alike without bits, or None.
      database: ±1 [B, T, bits]; database_valid: bool [B, T], or None.

    An image without a valid descriptor adds nothing.
    """
    best = jnp.einsum("qc,btc->bqt" if query.ndim == 2 else "bqc,btc->bqt", query, database) / query.shape[-1]
    if database_valid is not None:
        best = jnp.where(database_valid[:, None], best, -1)
    above = jnp.maximum(best.max(-1) - threshold, 0)
    if query_valid is not None:
        above = jnp.where(jnp.broadcast_to(query_valid, above.shape), above, 0)
    return above.sum(-1).astype(jnp.float32)
