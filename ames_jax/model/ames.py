"""AMES: tokenizer, matching token, alternating attention, classifier; its configuration and named variants."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from ames_jax.descriptors import AnyArray, DescriptorSet
from ames_jax.model.attention import ACTIVATIONS, CrossWeights, Layer, Sequence, join_valid
from ames_jax.model.matches import FORMS, QUERIES, as_long_as_signs, matched, similarities, vectors_of
from ames_jax.model.shortcuts import SharedQuery, join_database, last_row, share_query
from ames_jax.model.tokens import Tokenizer, check_fields, layer_norm
from ames_jax.runtime.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class AMESConfig:
    """Shape of a model. The defaults are the released size; `descriptor_width` and `bits` tell the variants apart.

    Attributes:
      descriptor_width: D, width of the local descriptors (768 DINOv2, 1024 CVNet, 128 SIFT).
      bits: bits stored per descriptor (128 in the release), or None for full precision.
      model_width: d, width of the tokens.
      heads: attention heads; model_width must be divisible by them.
      layers: alternating-attention layers.
      feed_forward: width of the feed-forward blocks.
      activation: "relu" (release) or "gelu" (exact).
      pre_norm: LayerNorm before each block and once at the end, instead of after each block (release: False).
      binarizer: "straight_through" (hard sign forward, gradient passed through) or "erf" (the release's surrogate).
      sigma: the erf surrogate's variance; 1e-6 in the release.
      round_stored: full precision rounds database tokens through float16 at test time, as they are stored (release: True).
      dtype: compute type, "float32" or "bfloat16"; parameters, bits, softmax and scores stay float32.
      match_weight: of the matches (`matches.matched` above match_threshold) that are added to the logit; ours, 0 in the
        release. A binary model compares bits, a full-precision one its tokens (whitened descriptors where training begins
        with init "matching").
      match_threshold: cosine from which descriptors match.
      match_form: "query" (best partners of the query's descriptors) or "mutual" (partners that are each other's best).
      match_query: "bits" or "floats": a query given as floats is compared by its bits, or by its projections before they
        are binarized (asymmetric). Binary models only.
      match_learned: weight and threshold are parameters, which start from these values.
    """

    descriptor_width: int = 768
    bits: int | None = None
    model_width: int = 128
    heads: int = 2
    layers: int = 5
    feed_forward: int = 1024
    activation: str = "relu"
    pre_norm: bool = False
    binarizer: str = "straight_through"
    sigma: float = 1e-6
    round_stored: bool = True
    dtype: str = "float32"
    match_weight: float = 0.0
    match_threshold: float = 0.0
    match_form: str = "query"
    match_query: str = "bits"
    match_learned: bool = False

    def __post_init__(self) -> None:
        if self.model_width % self.heads:
            raise UserError(f"model_width {self.model_width} is not divisible by heads {self.heads}")
        if self.layers < 1:
            raise UserError(f"layers must be at least 1, found {self.layers}")
        binarizers, dtypes = ("straight_through", "erf"), ("float32", "bfloat16")
        choices = {"activation": tuple(ACTIVATIONS), "binarizer": binarizers, "dtype": dtypes}
        check_fields(self, {**choices, "match_form": FORMS, "match_query": QUERIES})

    @property
    def counts_matches(self) -> bool:
        """True if matches are added to the logit."""
        return self.match_learned or self.match_weight != 0

    @classmethod
    def named(cls, name: str) -> AMESConfig:
        """The configuration of a released model: dinov2_ames, dinov2_ames_dist, cvnet_ames or cvnet_ames_dist."""
        if name not in NAMED:
            hint = did_you_mean(name, NAMED)
            raise UserError(f"unknown model {name!r}: expected one of {', '.join(NAMED)}{hint}")
        return cls(**NAMED[name])

    def activation_bytes(self, queries: int, databases: int) -> int:
        """About how many bytes the activations of a pair take on CPU, for Q and T descriptors a side (released size)."""
        return 6000 * (1 + queries + databases)


NAMED: dict[str, dict[str, Any]] = {
    "dinov2_ames": {"descriptor_width": 768},
    "dinov2_ames_dist": {"descriptor_width": 768, "bits": 128},
    "cvnet_ames": {"descriptor_width": 1024},
    "cvnet_ames_dist": {"descriptor_width": 1024, "bits": 128},
}
# λ and γ of the ensemble with the global similarity, tuned by the authors on the public part of GLDv2.
RELEASED: dict[str, tuple[float, float]] = {
    "dinov2_ames": (0.50, 0.20),
    "dinov2_ames_dist": (0.35, 0.10),
    "cvnet_ames": (0.85, 0.80),
    "cvnet_ames_dist": (0.65, 0.20),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """The answer for B pairs, with the tokens that it was read from.

    Attributes:
      logit: float32 [B]; the similarity is its sigmoid.
      tokens: [B, 1 + Q + T, d], final-layer matching token, query tokens, database tokens (rows of padding are noise).
    """

    logit: jax.Array
    tokens: jax.Array


class AMES(nnx.Module):
    """Similarity of two sets of local descriptors (Suma et al., ECCV 2024; arXiv 2408.03282).

    `model(query, database)` is the whole forward pass. `pair_logits`, and for a shortlist `share_query` with `logits`, are
    shorter ways to the same logits (shortcuts.py).
    """

    def __init__(self, config: AMESConfig, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        # On accelerators the default rounds float32 products to fewer bits, and scores would differ from the authors'.
        precision = jax.lax.Precision.HIGHEST if config.dtype == "float32" else None
        options = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.tokenizer = Tokenizer(
            config.descriptor_width,
            config.model_width,
            config.bits,
            binarizer=config.binarizer,
            sigma=config.sigma,
            **options,
        )
        truncated_normal = nnx.initializers.truncated_normal(stddev=0.02, lower=-2.0, upper=2.0)
        self.matching_token = nnx.Param(truncated_normal(rngs.params(), (config.model_width,)))
        self.layers = nnx.List(
            Layer(
                config.model_width,
                config.heads,
                config.feed_forward,
                activation=config.activation,
                pre_norm=config.pre_norm,
                **options,
            )
            for _ in range(config.layers)
        )
        self.final_norm = layer_norm(config.model_width, dtype, rngs) if config.pre_norm else None
        options["dtype"] = jnp.float32
        self.classifier = nnx.Linear(config.model_width, 1, kernel_init=truncated_normal, **options)
        if config.match_learned:
            self.match_weight = nnx.Param(jnp.float32(config.match_weight))
            self.match_threshold = nnx.Param(jnp.float32(config.match_threshold))

    def __call__(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> Pair:
        """Scores pair i of query [B, Q, ·] with database [B, T, ·].

        Either side may hold floats or, for a binary model, packed bits. `train=True` switches the erf surrogate on and the
        rounding of full-precision database tokens through float16 (as they are stored) off.
        """
        sequence = self._sequence(query, database, train)
        for layer in self.layers:
            sequence = layer(sequence)
        tokens, at = self._normed(sequence.tokens), sequence.queries
        ordered = jnp.concatenate([tokens[:, at : at + 1], tokens[:, :at], tokens[:, at + 1 :]], axis=1)
        return Pair(self._with_matches(self._classify(ordered), query, database, train), ordered)

    def pair_logits(self, query: DescriptorSet, database: DescriptorSet, train: bool = False) -> Float32[Array, " B"]:
        """Logits of query [B, Q, ·] with database [B, T, ·], without the tokens that a score does not need."""
        sequence = self.layers[0].self_block(self._sequence(query, database, train))
        return self._with_matches(self._after_self_block(sequence), query, database, train)

    def share_query(self, query: DescriptorSet) -> SharedQuery:
        """The work on one query [Q, ·] that its whole shortlist shares."""
        tokens = self.tokenizer(query)
        shared = share_query(self.layers[0], tokens, query.valid, self._matching(tokens.dtype))
        if not self.config.counts_matches:
            return shared
        return shared._replace(vectors=self._vectors(query, asking=True))

    def logits(self, shared: SharedQuery, database: DescriptorSet) -> Float32[Array, " K"]:
        """Logits of one shared query against database images [K, T, ·]."""
        tokens = self.database_tokens(database)
        sequence = join_database(self.layers[0], shared, self._matching(tokens.dtype), tokens, database.valid)
        logits = self._after_self_block(sequence)
        if shared.vectors is None:
            return logits
        return logits + self._matches(shared.vectors, self._vectors(database), shared.valid, database.valid)

    def database_tokens(self, database: DescriptorSet, train: bool = False) -> Float[Array, "*batch T d"]:
        """Tokens of the database side; at test time in the precision in which they are stored."""
        tokens = self.tokenizer(database, train)
        if self.config.round_stored and self.config.bits is None and not train:
            tokens = tokens.astype(jnp.float16).astype(tokens.dtype)
        return tokens

    def cross_weights(self, query: DescriptorSet, database: DescriptorSet) -> list[CrossWeights]:
        """The attention weights of each layer's cross block for query [B, Q, ·] with database [B, T, ·]: what matched what."""
        sequence, weights = self._sequence(query, database, train=False), []
        for layer in self.layers:
            weights.append(layer.cross_weights(sequence))
            sequence = layer(sequence)
        return weights

    def _sequence(self, query: DescriptorSet, database: DescriptorSet, train: bool) -> Sequence:
        """The tokens of B pairs as they enter the first layer."""
        query_tokens, database_tokens = self.tokenizer(query, train), self.database_tokens(database, train)
        batch, queries, width = query_tokens.shape
        matching = jnp.broadcast_to(self._matching(query_tokens.dtype), (batch, 1, width))
        valid = join_valid(query.valid, database.valid, batch, queries, database_tokens.shape[1])
        return Sequence(jnp.concatenate([query_tokens, matching, database_tokens], axis=1), valid, queries)

    def _after_self_block(self, sequence: Sequence) -> Float32[Array, " B"]:
        """Logits from a sequence after the first layer's self block; the last layer for the matching token alone."""
        for layer, following in itertools.pairwise(self.layers):
            sequence = following.self_block(layer.after_self_block(sequence))
        return self._classify(self._normed(last_row(self.layers[-1], sequence)))

    def _with_matches(
        self, logits: Float32[Array, " B"], query: DescriptorSet, database: DescriptorSet, train: bool
    ) -> Float32[Array, " B"]:
        if not self.config.counts_matches:
            return logits
        vectors = self._vectors(query, train, asking=True), self._vectors(database, train)
        return logits + self._matches(*vectors, query.valid, database.valid)

    def _vectors(self, side: DescriptorSet, train: bool = False, asking: bool = False) -> Float32[Array, "*batch N C"]:
        """Vectors that are matched, of the database or of the query (asking): bits, or tokens of a full-precision model."""
        if self.config.bits is None:
            tokens = self.tokenizer(side, train) if asking else self.database_tokens(side, train)
            return as_long_as_signs(tokens.astype(jnp.float32))
        return vectors_of(side, self.tokenizer, asking and self.config.match_query == "floats", train)

    def _matches(
        self,
        query: Float32[Array, "*B Q C"],
        database: Float32[Array, "K T C"],
        query_valid: Bool[AnyArray, "*B Q"] | None,
        database_valid: Bool[AnyArray, "K T"] | None,
    ) -> Float32[Array, " K"]:
        """The term of the logit; bits pass their gradient on as the binarizer does."""
        weight, threshold = self.config.match_weight, self.config.match_threshold
        if self.config.match_learned:
            weight, threshold = self.match_weight[...], self.match_threshold[...]
        cosines = similarities(query, database, query_valid, database_valid)
        return weight * matched(cosines, threshold, self.config.match_form)

    def _normed(self, tokens: Float[Array, "B N d"]) -> Float[Array, "B N d"]:
        return tokens if self.final_norm is None else self.final_norm(tokens)

    def _classify(self, tokens: Float[Array, "B N d"]) -> Float32[Array, " B"]:
        """The classifier reads the first token, the matching one."""
        return self.classifier(tokens[:, 0].astype(jnp.float32))[:, 0]

    def _matching(self, dtype: jnp.dtype) -> Float[Array, "1 d"]:
        return self.matching_token[...].astype(dtype)[None]
