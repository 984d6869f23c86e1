"""ELViS: similarity of two sets of local descriptors by optimal transport between them; its configuration and variants.

Each descriptor becomes a unit vector of 128 values. The cosines of all pairs, ten times enlarged, are the scores of a
transport plan P between the two sets, with a dust bin on each side for what has no partner. A small network turns the
largest share that each descriptor gives to one partner into a vote, and the votes are summed
(ELViS, ICLR 2026, arXiv 2603.28603).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from ames_jax.descriptors import AnyArray, DescriptorSet
from ames_jax.model.tokens import Tokenizer, check_fields, l2_normalise
from ames_jax.runtime.errors import UserError

SHARPNESS = 10.0  # of the cosines; a constant of the authors' code, not in their files
# Released by the authors; the widths of the descriptors (768, 1024, 1152, 768) are read from the files.
NAMES = ("dinov2_elvis_gld", "dinov3_elvis_gld", "siglip2_elvis_gld", "dinov2_elvis_sop")
PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class ELViSConfig:
    """Shape of an ELViS model; the defaults are the released size.

    Attributes:
      descriptor_width: D, width of the local descriptors (768 DINOv2, 1024 DINOv3, 1152 SigLIP2).
      bits: bits stored per descriptor, or None for full precision. The authors' models have none.
      model_width: d, width of the vectors that are compared.
      iterations: of Sinkhorn's algorithm.
      vote_width, head_width: hidden widths of the vote of a descriptor and of the training head.
      padding: "counted" takes padding out of the transport, so that it changes no score; "released" lets it take part in
        the marginals and the dust bins, as the authors' code does.
      round_stored: full precision rounds database vectors through float16 at test time, as they would be stored
        (the authors' code: False).
      binarizer, sigma: as in `AMESConfig`.
    """

    descriptor_width: int = 768
    bits: int | None = None
    model_width: int = 128
    iterations: int = 10
    vote_width: int = 16
    head_width: int = 64
    padding: str = "counted"
    round_stored: bool = False
    binarizer: str = "straight_through"
    sigma: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self, {"padding": ("counted", "released"), "binarizer": ("straight_through", "erf")})
        if min(self.iterations, self.model_width, self.vote_width, self.head_width) < 1:
            raise UserError("iterations, model_width, vote_width and head_width must be at least 1")

    def activation_bytes(self, queries: int, databases: int) -> int:
        """Bytes of a pair's activations, as in `AMESConfig`: the kernel, which is read 20 times, and the votes."""
        return 4 * queries * databases + 400 * (queries + databases)


class Side(NamedTuple):
    """One side of pairs: unit vectors float32 [..., N, d], scores of the dust bin [..., N], validity [..., N] or None."""

    vectors: jax.Array
    dust: jax.Array
    valid: Any


class Kernel(NamedTuple):
    """exp(10 · scores) of B pairs, 0 where nothing may go: core [B, Q, T], dust bins [B, Q] and [B, T], corner [].

    The scores lie in −10..10 (the corner aside), so their exponentials are plain float32 numbers and Sinkhorn's algorithm
    is a handful of products with this matrix; the authors' code does the same steps on logarithms.
    """

    core: jax.Array
    query_dust: jax.Array
    database_dust: jax.Array
    corner: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transport:
    """The answer for B pairs, with what it was read from.

    Attributes:
      logit: float32 [B], the sum of votes; in training what the head makes of it.
      plan: float32 [B, Q, T], the share that each descriptor gives to each of the other side.
      tokens: float32 [B, Q + T, d], the unit vectors times √d: what a student is distilled from.
    """

    logit: jax.Array
    plan: jax.Array
    tokens: jax.Array


class ELViS(nnx.Module):
    """`model(query, database)` is the whole forward pass; `share_query` and `logits` score a query's whole shortlist.

    A logit is the sum of votes, before λ, γ and the sigmoid of the ensemble. With `train=True` the training head is
    applied to it, which turns it into the logit of a match.
    """

    def __init__(self, config: ELViSConfig, rngs: nnx.Rngs):
        self.config = config
        xavier = nnx.initializers.xavier_uniform()
        self.tokenizer = Tokenizer(
            config.descriptor_width,
            config.model_width,
            config.bits,
            binarizer=config.binarizer,
            sigma=config.sigma,
            dtype=jnp.dtype(jnp.float32),
            precision=PRECISION,
            rngs=rngs,
        )
        self.tokenizer.remap.kernel[...] = xavier(rngs.params(), self.tokenizer.remap.kernel.shape)

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=xavier, precision=PRECISION, rngs=rngs)

        self.dust_hidden = linear(config.model_width, config.model_width)
        self.dust_out = linear(config.model_width, 1)
        self.corner = nnx.Param(jnp.asarray(1.0))
        self.vote_hidden = linear(1, config.vote_width)
        self.vote_norm = nnx.LayerNorm(config.vote_width, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.vote_out = linear(config.vote_width, 1)
        self.head_hidden = linear(1, config.head_width)
        self.head_out = linear(config.head_width, 1)

    def __call__(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> Transport:
        """Scores pair i of query [B, Q, ·] with database [B, T, ·] and keeps the plan.

        Either side may hold floats or, for a binary model, packed bits.
        """
        stored = self.vectors(database, train) if train else self.stored_vectors(database)
        sides = self._side(self.vectors(query, train), query.valid), self._side(stored, database.valid)
        score, plan = self._transport(*sides)
        tokens = jnp.concatenate([side.vectors for side in sides], axis=1) * self.config.model_width**0.5
        return Transport(self.head(score) if train else score, plan, tokens)

    def pair_logits(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> Float32[Array, " B"]:
        """Logits of query [B, Q, ·] with database [B, T, ·]."""
        return self(query, database, train).logit

    def share_query(self, query: DescriptorSet) -> Side:
        """The work on one query [Q, ·] that its whole shortlist shares."""
        return self._side(self.vectors(query), query.valid)

    def logits(self, shared: Side, database: DescriptorSet) -> Float32[Array, " K"]:
        """Logits of one shared query against database images [K, T, ·]."""
        return self._transport(shared, self._side(self.stored_vectors(database), database.valid))[0]

    def logits_of_vectors(self, shared: Side, database: DescriptorSet) -> Float32[Array, " K"]:
        """As `logits`, of images whose features are `stored_vectors` [K, T, d]."""
        return self._transport(shared, self._side(database.features, database.valid))[0]

    def head(self, score: Float[AnyArray, " B"]) -> Float32[Array, " B"]:
        """The logits that the training loss reads: a small network on the sum of votes, above 0 for a match."""
        return self.head_out(_gelu(self.head_hidden(jnp.asarray(score, jnp.float32)[..., None])))[..., 0]

    def vectors(self, descriptors: DescriptorSet, train: bool = False) -> Float32[Array, "*B N d"]:
        """The unit vectors that are compared."""
        if self.config.bits is None:  # the authors project descriptors as they come: their files hold unit vectors
            vectors = self.tokenizer.norm(self.tokenizer.remap(descriptors.features.astype(jnp.float32)))
        else:
            vectors = self.tokenizer(descriptors, train)
        return l2_normalise(vectors)

    def stored_vectors(self, descriptors: DescriptorSet) -> Float[Array, "*B N d"]:
        """Vectors that full precision stores of database images: float16 where `round_stored`, else float32."""
        rounded = self.config.round_stored and self.config.bits is None
        return self.vectors(descriptors).astype(jnp.float16 if rounded else jnp.float32)

    def _side(self, vectors: Float[AnyArray, "*B N d"], valid: Any) -> Side:
        vectors = jnp.asarray(vectors, jnp.float32)
        return Side(vectors, jnp.tanh(self.dust_out(_gelu(self.dust_hidden(vectors)))[..., 0]), valid)

    def _transport(self, query: Side, database: Side) -> tuple[Float32[Array, " B"], Float32[Array, "B Q T"]]:
        """Sums of votes, and the plan, of a shared query or B queries with B database images."""
        of_query = "qd" if query.vectors.ndim == 2 else "bqd"
        cosines = jnp.einsum(f"{of_query},btd->bqt", query.vectors, database.vectors, precision=PRECISION)
        batch, queries, databases = cosines.shape
        query_real, database_real = _real(query.valid, (batch, queries)), _real(database.valid, (batch, databases))
        query_dust = jnp.broadcast_to(jnp.exp(SHARPNESS * query.dust), (batch, queries))
        database_dust = jnp.exp(SHARPNESS * database.dust)
        core = jnp.exp(SHARPNESS * cosines)
        if query.valid is not None or database.valid is not None:
            core = jnp.where(query_real[:, :, None] & database_real[:, None, :], core, 0)
        if self.config.padding == "counted":
            query_mass, database_mass = query_real.astype(jnp.float32), database_real.astype(jnp.float32)
            query_dust, database_dust = query_dust * query_mass, database_dust * database_mass
        else:
            query_mass, database_mass = jnp.ones((batch, queries)), jnp.ones((batch, databases))
        kernel = Kernel(core, query_dust, database_dust, jnp.exp(SHARPNESS * self.corner[...]))
        rows, columns = sinkhorn(kernel, query_mass, database_mass, self.config.iterations)
        plan = rows[:, :, None] * core * columns[:, None, :]
        largest = jnp.concatenate([plan.max(2, initial=0), plan.max(1, initial=0)], axis=1)
        real = jnp.concatenate([query_real, database_real], axis=1)
        return jnp.where(real, self._votes(largest), 0).sum(1), plan

    def _votes(self, largest: Float32[Array, "B N"]) -> Float32[Array, "B N"]:
        """In 0..1, from the largest share of each descriptor."""
        hidden = _gelu(self.vote_norm(self.vote_hidden(largest[..., None])))
        return jax.nn.sigmoid(self.vote_out(hidden)[..., 0])


def sinkhorn(
    kernel: Kernel, query_mass: Float32[Array, "B Q"], database_mass: Float32[Array, "B T"], iterations: int
) -> tuple[Float32[Array, "B Q"], Float32[Array, "B T"]]:
    """Scalings of the rows and columns of the kernel's core with which it is the transport plan.

    A descriptor has its mass to give, and a dust bin that of the whole other side. Rows are set first, columns last.
    """
    bin_row, bin_column = database_mass.sum(1), query_mass.sum(1)

    def once(_: jax.Array | int, scalings: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        _, columns, column_bin = scalings
        sums = jnp.einsum("bqt,bt->bq", kernel.core, columns, precision=PRECISION)
        rows = _divide(query_mass, sums + kernel.query_dust * column_bin[:, None])
        row_bin = _divide(bin_row, (kernel.database_dust * columns).sum(1) + kernel.corner * column_bin)
        sums = jnp.einsum("bqt,bq->bt", kernel.core, rows, precision=PRECISION)
        columns = _divide(database_mass, sums + kernel.database_dust * row_bin[:, None])
        column_bin = _divide(bin_column, (kernel.query_dust * rows).sum(1) + kernel.corner * row_bin)
        return rows, columns, column_bin

    start = jnp.zeros_like(query_mass), jnp.ones_like(database_mass), jnp.ones_like(bin_column)
    return jax.lax.fori_loop(0, iterations, once, start)[:2]


def _divide(mass: jax.Array, sums: jax.Array) -> jax.Array:
    return jnp.where(mass > 0, mass / jnp.where(mass > 0, sums, 1), 0)


def _real(valid: Bool[AnyArray, "*B N"] | None, shape: tuple[int, int]) -> Bool[Array, "B N"]:
    return jnp.ones(shape, bool) if valid is None else jnp.broadcast_to(valid, shape)


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)
