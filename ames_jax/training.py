"""One training step of teacher or student, as a pure function; the optimizer and its schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.losses import distillation_loss, matching_loss, pair_labels
from ames_jax.similarity import AMES

Rows = tuple[int, int]  # padded numbers of query and database descriptors


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
      steps: optimizer steps; the cosine ends at 0 on the last.
      learning_rate: peak learning rate of AdamW.
      weight_decay: decoupled weight decay, on every parameter as in the release.
      beta2: AdamW's second moment decay.
      warmup: steps of linear warm-up from 0 (release: none).
      clip: largest global norm of a gradient, or None (release: none).
      distillation: β, weight of the token loss of a student (release: 10); unused without a teacher.
      distil_padding: the release's mean over tokens counts padding rows below the drawn length; ours leaves them out.
      buckets: padded numbers of descriptors, rising; each (query, database) pair of them is one compiled program.
    """

    steps: int
    learning_rate: float = 2e-4
    weight_decay: float = 5e-4
    beta2: float = 0.999
    warmup: int = 0
    clip: float | None = None
    distillation: float = 10.0
    distil_padding: bool = False
    buckets: Sequence[int] = (100, 200, 300, 400)

    def schedule(self, step: jax.Array | int) -> jax.Array:
        """Learning rate at a step: linear warm-up, then half a cosine to 0 at `steps`."""
        warm = jnp.minimum(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.learning_rate * warm * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, step / self.steps)))

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with the schedule, behind the clipping if any."""
        adamw = optax.adamw(self.schedule, b2=self.beta2, weight_decay=self.weight_decay)
        return adamw if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), adamw)

    def bucket(self, length: int) -> int:
        """The smallest bucket that holds `length` descriptors."""
        return next(b for b in self.buckets if b >= length)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes: parameters, optimizer state and the number of steps done (int32)."""

    params: nnx.State
    optimizer: optax.OptState
    step: jax.Array

    @classmethod
    def create(cls, params: nnx.State, recipe: Recipe) -> TrainState:
        """The state before the first step."""
        return cls(params, recipe.optimizer().init(params), jnp.zeros((), jnp.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TripletArrays:
    """The arrays of one batch of B triplets, each DescriptorSet [B, K, ·]; `lengths` int32 [2]: query, database.

    K is the full length, which the teacher sees; a step cuts the arrays to its bucket and masks the rest.
    """

    anchor: DescriptorSet
    positive: DescriptorSet
    negative: DescriptorSet
    lengths: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherTokens:
    """The teacher's final-layer tokens of 2B pairs at full length: [2B, 1, d], [2B, K, d], [2B, K, d]."""

    matching: jax.Array
    query: jax.Array
    database: jax.Array


def pairs(batch: TripletArrays) -> tuple[DescriptorSet, DescriptorSet]:
    """The 2B pairs of a batch, [2B, K, ·] a side: (a₀, p₀), (a₀, n₀), (a₁, p₁), …

    Pairs of a triplet stay neighbours so that a batch split over devices needs no exchange.
    """
    query = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), batch.anchor)
    interleave = lambda p, n: jnp.stack([p, n], axis=1).reshape(-1, *p.shape[1:])  # noqa: E731
    return query, jax.tree.map(interleave, batch.positive, batch.negative)


def shorten(descriptors: DescriptorSet, length: jax.Array) -> DescriptorSet:
    """Marks the rows at and past `length` (a scalar on the device) as padding."""
    kept = jnp.arange(descriptors.features.shape[-2]) < length
    kept = jnp.broadcast_to(kept, descriptors.features.shape[:-1])
    valid = kept if descriptors.valid is None else kept & descriptors.valid
    return DescriptorSet(descriptors.features, valid)


def make_teacher(teacher: AMES) -> Callable[[TripletArrays], TeacherTokens]:
    """A compiled function from a batch at full length to the frozen teacher's tokens."""
    graph, params = nnx.split(teacher)

    @jax.jit
    def forward(params: nnx.State, batch: TripletArrays) -> TeacherTokens:
        query, database = pairs(batch)
        tokens = nnx.merge(graph, params)(query, database).tokens
        queries = query.features.shape[1]
        return TeacherTokens(tokens[:, :1], tokens[:, 1 : 1 + queries], tokens[:, 1 + queries :])

    return lambda batch: forward(params, batch)


def make_loss(graph: nnx.GraphDef, recipe: Recipe) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """`loss(params, batch, teacher tokens or None, rows) -> (loss, parts)`: BCE, plus β times the token loss of a student.

    `rows` are the padded numbers of query and database descriptors to compute with, at least the drawn lengths.
    """

    def loss(params: nnx.State, batch: TripletArrays, teacher: TeacherTokens | None, rows: Rows) -> tuple[Any, Any]:
        query, database = (side.truncate(count) for side, count in zip(pairs(batch), rows))
        short_query, short_database = shorten(query, batch.lengths[0]), shorten(database, batch.lengths[1])
        model, labels = nnx.merge(graph, params), pair_labels(batch.anchor.features.shape[0])
        if teacher is None:
            logits = model.pair_logits(short_query, short_database, train=True)
            return (bce := matching_loss(logits, labels)), _parts(bce, logits, labels)
        out = model(short_query, short_database, train=True)
        bce = matching_loss(out.logit, labels)
        q, t = query.features.shape[1], database.features.shape[1]
        target = jnp.concatenate([teacher.matching, teacher.query[:, :q], teacher.database[:, :t]], axis=1)
        if recipe.distil_padding:
            bare = [DescriptorSet(side.features) for side in (query, database)]
            short_query, short_database = (shorten(side, n) for side, n in zip(bare, batch.lengths))
        first = jnp.ones((short_query.valid.shape[0], 1), bool)
        kept = jnp.concatenate([first, short_query.valid, short_database.valid], axis=1)
        distil = distillation_loss(out.tokens, jax.lax.stop_gradient(target), kept)
        return bce + recipe.distillation * distil, {**_parts(bce, out.logit, labels), "distillation": distil}

    return loss


def _parts(bce: jax.Array, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return {"bce": bce, "accuracy": jnp.mean((logits > 0) == (labels > 0.5))}


def make_step(graph: nnx.GraphDef, recipe: Recipe) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`step(state, batch, teacher tokens or None, rows) -> (state, metrics)`: compiled per `rows`, reuses the old state.

    Metrics (float32 scalars): loss, bce, accuracy, distillation (student), gradient_norm, learning_rate.
    """
    loss, optimizer = make_loss(graph, recipe), recipe.optimizer()

    def step(
        state: TrainState, batch: TripletArrays, teacher: TeacherTokens | None, rows: Rows
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, parts), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch, teacher, rows)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        metrics = {
            "loss": value, **parts, "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": recipe.schedule(state.step),
        }  # fmt: skip
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, optimizer_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0, static_argnums=3)
