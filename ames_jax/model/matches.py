"""Matches between two images' descriptors as a score, in JAX: a term of AMES's logit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from ames_jax.descriptors import AnyArray
from ames_jax.model.tokens import l2_normalise

FORMS = ("query", "mutual")


def as_long_as_signs(x: Float[AnyArray, "*batch N C"]) -> Float32[Array, "*batch N C"]:
    """Vectors brought to length √C, that of ±1 values; a zero vector stays zero."""
    return l2_normalise(x) * jnp.float32(x.shape[-1] ** 0.5)


def similarities(
    query: Float32[Array, "*B Q C"],
    database: Float32[Array, "K T C"],
    query_valid: Bool[AnyArray, "*B Q"] | None,
    database_valid: Bool[AnyArray, "K T"] | None,
) -> Float32[Array, "K Q T"]:
    """Cosines of all pairs, −1 where one of the two is padding.

    Vectors have length √C: ±1, or `as_long_as_signs`. The query's B is K, or left out for one query against all images.
    """
    cosines = jnp.einsum(
        "qc,ktc->kqt" if query.ndim == 2 else "kqc,ktc->kqt", query, database, precision=jax.lax.Precision.HIGHEST
    )
    cosines = cosines / query.shape[-1]
    if database_valid is not None:
        cosines = jnp.where(database_valid[:, None], cosines, -1)
    if query_valid is not None:
        cosines = jnp.where(jnp.broadcast_to(query_valid, cosines.shape[:2])[..., None], cosines, -1)
    return cosines


def matched(
    cosines: Float32[Array, "K Q T"], threshold: float | Float32[Array, ""], form: str = "query"
) -> Float32[Array, " K"]:
    """The sum over the query's descriptors of max(0, cosine of the best partner − threshold); cosines of `similarities`.

    form: "query" takes the best partner of each query descriptor; "mutual" only one that has no better partner either. Of
    partners that are equally good, as bits often are, one such is enough: the order of descriptors changes nothing.
    An image without a valid descriptor adds nothing at a threshold from −1 on. The gradient is that of the cosines; the choice
    of partners has none.
    """
    best = cosines.max(-1, initial=-1)
    if form == "mutual":
        of_database = cosines.max(-2, initial=-1, keepdims=True)
        mutual = jnp.where(cosines >= of_database, cosines, -1).max(-1, initial=-1)
        best = jnp.where(mutual == best, mutual, -1)
    return jnp.maximum(best - threshold, 0).sum(-1)
