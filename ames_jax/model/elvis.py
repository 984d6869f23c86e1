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

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.tokens import Tokenizer, l2_normalise
from ames_jax.runtime.errors import UserError, did_you_mean

SHARPNESS = 10.0  # of the cosines; a constant of the authors' code, not in their files
PADDINGS = ("counted", "released")


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
      binarizer, sigma: as in `AMESConfig`.
    """

    descriptor_width: int = 768
    bits: int | None = None
    model_width: int = 128
    iterations: int = 10
    vote_width: int = 16
    head_width: int = 64
    padding: str = "counted"
    binarizer: str = "straight_through"
    sigma: float = 1e-6

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits % 8:
            raise UserError(f"bits {self.bits} is not a whole number of bytes")
        if self.padding not in PADDINGS:
            raise UserError(f"padding must be one of {', '.join(PADDINGS)}, found {self.padding!r}")

    @classmethod
    def named(cls, name: str) -> ELViSConfig:
        """The configuration of a released model; raises UserError for a name that is none."""
        if name not in NAMED:
            raise UserError(f"unknown model {name!r}: expected one of {', '.join(NAMED)}{did_you_mean(name, NAMED)}")
        return cls(**NAMED[name])


# The authors' hub file says width 768 for all; the widths of their weights are these.
NAMED: dict[str, dict[str, Any]] = {
    "dinov2_elvis_gld": {"descriptor_width": 768},
    "dinov3_elvis_gld": {"descriptor_width": 1024},
    "siglip2_elvis_gld": {"descriptor_width": 1152},
    "dinov2_elvis_sop": {"descriptor_width": 768},
}


class Side(NamedTuple):
    """One side of a pair: unit vectors [..., N, d], scores of the dust bin [..., N], validity bool [..., N] or None."""

    vectors: jax.Array
    dust: jax.Array
    valid: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transport:
    """Result of B pairs: score float32 [B], and the plan float32 [B, Q, T] (shares of descriptors given to each other)."""

    score: jax.Array
    plan: jax.Array


class ELViS(nnx.Module):
    """`model(query, database)` is the whole forward pass; `share_query` and `logits` score a query's whole shortlist.

    The score is the sum of votes, before λ, γ and the sigmoid of the ensemble. `train_logits` adds the head of training.
    """

    def __init__(self, config: ELViSConfig, rngs: nnx.Rngs):
        self.config = config
        precision = jax.lax.Precision.HIGHEST
        self.tokenizer = Tokenizer(
            config.descriptor_width,
            config.model_width,
            config.bits,
            config.binarizer,
            config.sigma,
            jnp.float32,
            precision,
            rngs,
        )
        xavier = nnx.initializers.xavier_uniform()

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=xavier, precision=precision, rngs=rngs)

        self.dust_hidden = linear(config.model_width, config.model_width)
        self.dust_out = linear(config.model_width, 1)
        self.corner = nnx.Param(jnp.asarray(1.0))
        self.vote_hidden = linear(1, config.vote_width)
        self.vote_norm = nnx.LayerNorm(config.vote_width, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.vote_out = linear(config.vote_width, 1)
        self.head_hidden = linear(1, config.head_width)
        self.head_out = linear(config.head_width, 1)

    def __call__(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> Transport:
        """Scores pair i of query [B, Q, ·] with database [B, T, ·] and keeps the plan."""
        score, plan = self._transport(self._side(query, train), self._side(database, train))
        return Transport(score, plan)

    def share_query(self, query: DescriptorSet) -> Side:
        """The work on one query [Q, ·] that its whole shortlist shares."""
        return self._side(query, train=False)

    def logits(self, shared: Side, database: DescriptorSet) -> jax.Array:
        """float32 scores [B] of one shared query against database images [B, T, ·]."""
        return self._transport(shared, self._side(database, train=False))[0]

    def pair_logits(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> jax.Array:
        """float32 scores [B] of query [B, Q, ·] with database [B, T, ·]."""
        return self(query, database, train).score

    def train_logits(self, score: jax.Array) -> jax.Array:
        """float32 [B]: what the loss of training reads, a small network on the score."""
        return self.head_out(_gelu(self.head_hidden(score[..., None])))[..., 0]

    def _side(self, descriptors: DescriptorSet, train: bool) -> Side:
        if self.config.bits is None:  # the authors project descriptors as they come; their files hold unit vectors
            vectors = self.tokenizer.norm(self.tokenizer.remap(descriptors.features.astype(jnp.float32)))
        else:
            vectors = self.tokenizer(descriptors, train)
        vectors = l2_normalise(vectors)
        dust = jnp.tanh(self.dust_out(_gelu(self.dust_hidden(vectors)))[..., 0])
        return Side(vectors, dust, descriptors.valid)

    def _transport(self, query: Side, database: Side) -> tuple[jax.Array, jax.Array]:
        database_columns = jnp.swapaxes(database.vectors, -1, -2)
        cosines = jnp.matmul(query.vectors, database_columns, precision=jax.lax.Precision.HIGHEST)
        batch, queries, databases = cosines.shape
        query, database = (
            Side(side.vectors, jnp.broadcast_to(side.dust, (batch, count)), _real(side.valid, (batch, count)))
            for side, count in ((query, queries), (database, databases))
        )
        kernel = self._kernel(cosines, query, database)
        row_mass, column_mass = self._masses(query.valid, database.valid)
        rows, columns = _sinkhorn(kernel, row_mass, column_mass, self.config.iterations)
        plan = rows[:, :-1, None] * kernel[:, :-1, :-1] * columns[:, None, :-1]
        largest = jnp.concatenate([plan.max(2), plan.max(1)], axis=1)
        votes = jax.nn.sigmoid(self.vote_out(_gelu(self.vote_norm(self.vote_hidden(largest[..., None]))))[..., 0])
        real = jnp.concatenate([query.valid, database.valid], axis=1)
        return jnp.where(real, votes, 0).sum(1), plan

    def _kernel(self, cosines: jax.Array, query: Side, database: Side) -> jax.Array:
        """exp(10 · scores) [B, Q + 1, T + 1], dust bins last; 0 where nothing may go.

        The scores lie in −10..10 (the corner aside), so their exponentials are plain float32 numbers and Sinkhorn's
        algorithm is a handful of products with this matrix; the authors' code does the same steps on logarithms.
        """
        core = jnp.where(query.valid[:, :, None] & database.valid[:, None, :], jnp.exp(SHARPNESS * cosines), 0)
        right, below = jnp.exp(SHARPNESS * query.dust), jnp.exp(SHARPNESS * database.dust)
        if self.config.padding == "counted":
            right, below = jnp.where(query.valid, right, 0), jnp.where(database.valid, below, 0)
        corner = jnp.broadcast_to(jnp.exp(SHARPNESS * self.corner[...]), (len(cosines), 1, 1))
        top = jnp.concatenate([core, right[:, :, None]], axis=2)
        return jnp.concatenate([top, jnp.concatenate([below[:, None, :], corner], axis=2)], axis=1)

    def _masses(self, query: jax.Array, database: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Shares that each row [B, Q + 1] and column [B, T + 1] has to give: 1 per descriptor, a bin those of the other side."""
        if self.config.padding == "counted":
            query, database = query.astype(jnp.float32), database.astype(jnp.float32)
        else:
            query, database = jnp.ones(query.shape), jnp.ones(database.shape)
        rows = jnp.concatenate([query, database.sum(1, keepdims=True)], axis=1)
        columns = jnp.concatenate([database, query.sum(1, keepdims=True)], axis=1)
        return rows, columns


def _sinkhorn(kernel: jax.Array, rows: jax.Array, columns: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """Scalings u [B, Q + 1] and v [B, T + 1] with u · kernel · v near the masses; rows are set first, columns last."""
    u, v = jnp.ones_like(rows), jnp.ones_like(columns)
    for _ in range(iterations):
        u = _divide(rows, jnp.einsum("bqt,bt->bq", kernel, v, precision=jax.lax.Precision.HIGHEST))
        v = _divide(columns, jnp.einsum("bqt,bq->bt", kernel, u, precision=jax.lax.Precision.HIGHEST))
    return u, v


def _divide(mass: jax.Array, sums: jax.Array) -> jax.Array:
    return jnp.where(mass > 0, mass / jnp.where(mass > 0, sums, 1), 0)


def _real(valid: jax.Array | None, shape: tuple[int, int]) -> jax.Array:
    return jnp.ones(shape, bool) if valid is None else jnp.broadcast_to(valid, shape)


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)
