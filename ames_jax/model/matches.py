"""Matches between two images' descriptors as a score, in JAX: a term of AMES's logit, and by themselves a model that needs no
training."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from ames_jax.descriptors import AnyArray, DescriptorSet
from ames_jax.model.tokens import Binarizer, l2_normalise
from ames_jax.runtime.errors import UserError

FORMS, QUERIES = ("query", "mutual"), ("bits", "floats")


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


def vectors_of(
    descriptors: DescriptorSet, binarizer: Binarizer, floats: bool, train: bool
) -> Float32[Array, "*batch N C"]:
    """Vectors of a binary model for `similarities`: bits as ±1 or, where floats are wanted and there, what is behind them."""
    if floats and not descriptors.is_packed:
        return as_long_as_signs(binarizer.projections(descriptors.features))
    return binarizer.signs(descriptors, train)


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
    """Settings of hand-made matching as a model.

    Attributes:
      descriptor_width: D, width of the local descriptors.
      bits: bits stored per descriptor.
      threshold: cosine from which descriptors match.
      form: of `matched`; query: "bits" or "floats", as `match_query` of `AMESConfig`.
    """

    descriptor_width: int = 64
    bits: int = 64
    threshold: float = 0.5
    form: str = "mutual"
    query: str = "floats"

    def __post_init__(self) -> None:
        if not self.bits or self.bits % 8:
            raise UserError(f"bits {self.bits} is not a whole number of bytes")
        for field, allowed in {"form": FORMS, "query": QUERIES}.items():
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} must be one of {', '.join(allowed)}, found {getattr(self, field)!r}")

    def activation_bytes(self, queries: int, databases: int) -> int:
        """Bytes of a pair's activations, as in `AMESConfig`: the cosines, three times, and the vectors."""
        return 12 * queries * databases + 4 * self.bits * (queries + databases)


class Side(NamedTuple):
    """One side of pairs: vectors float32 [..., N, bits] as long as ±1 values, validity [..., N] or None."""

    vectors: jax.Array
    valid: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matches:
    """The answer for B pairs: logit float32 [B], and the cosines of all pairs of descriptors, float32 [B, Q, T]."""

    logit: jax.Array
    cosines: jax.Array


class Matching(nnx.Module):
    """Hand-made matching: the sum of max(0, cosine − threshold) over matching descriptors; nothing in it is trained.

    Its logit never falls below 0: the ensemble scales it with γ.
    """

    def __init__(self, config: MatchingConfig, rngs: nnx.Rngs):
        self.config = config
        self.tokenizer = Binarizer(config.descriptor_width, config.bits, rngs=rngs)

    def __call__(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> Matches:
        """Scores pair i of query [B, Q, ·], floats or packed bits, with database [B, T, ·]."""
        return self._matches(self._query(query), database)

    def pair_logits(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> Float32[Array, " B"]:
        """Logits of query [B, Q, ·] with database [B, T, ·]."""
        return self(query, database).logit

    def share_query(self, query: DescriptorSet) -> Side:
        """The work on one query [Q, ·] that its whole shortlist shares."""
        return self._query(query)

    def logits(self, shared: Side, database: DescriptorSet) -> Float32[Array, " K"]:
        """Logits of one shared query against database images [K, T, ·]."""
        return self._matches(shared, database).logit

    def _query(self, query: DescriptorSet) -> Side:
        return Side(vectors_of(query, self.tokenizer, self.config.query == "floats", train=False), query.valid)

    def _matches(self, query: Side, database: DescriptorSet) -> Matches:
        signs = self.tokenizer.signs(database)
        cosines = similarities(query.vectors, signs, query.valid, database.valid)
        return Matches(matched(cosines, self.config.threshold, self.config.form), cosines)
