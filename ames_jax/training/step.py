"""One training step of teacher or student, as a pure function; the optimizer and its schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ames_jax.model.kinds import Model
from ames_jax.runtime.devices import BATCH_AXIS, EVERYWHERE, over_shares, summed
from ames_jax.training.batch import (
    BATCH_AXES,
    Rows,
    Totals,
    TripletArrays,
    count_totals,
    kept_tokens,
    pairs,
    parts_of,
    real_pairs,
    shorten,
    split_parts,
)
from ames_jax.training.losses import distillation_loss, matching_loss, pair_labels


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a training.

    Attributes:
      steps: optimizer steps; the cosine ends at 0 on the last.
      learning_rate: peak learning rate of AdamW.
      weight_decay: decoupled weight decay, on every parameter as in the release.
      beta2: AdamW's second moment decay.
      warmup: steps of linear warm-up (release: none).
      warmup_from: share of the rate at which it starts (ELViS: a third).
      clip: largest global norm of a gradient, or None (release: none).
      distillation: β, weight of the token loss of a student (release: 10); unused without a teacher.
      distil_padding: the release's mean over tokens counts padding rows below the drawn length; ours leaves them out.
      buckets: padded numbers of descriptors, rising; each (query, database) pair of them is one compiled program.
      accumulate: parts in which a device takes its share of a batch, one after another, where memory is short (on CPU
        more, for the cache); the gradient is the same up to rounding.
    """

    steps: int
    learning_rate: float = 2e-4
    weight_decay: float = 5e-4
    beta2: float = 0.999
    warmup: int = 0
    warmup_from: float = 0.0
    clip: float | None = None
    distillation: float = 10.0
    distil_padding: bool = False
    buckets: Sequence[int] = (100, 200, 300, 400)
    accumulate: int = 1

    def schedule(self, step: jax.Array | int) -> jax.Array:
        """Learning rate at a step: linear warm-up, then half a cosine to 0 at `steps`."""
        warm = jnp.minimum(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        warm = self.warmup_from + (1 - self.warmup_from) * warm
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
    """State that a step changes: parameters, optimizer state and the number of steps done (int32)."""

    params: nnx.State
    optimizer: optax.OptState
    step: jax.Array

    @classmethod
    def create(cls, params: nnx.State, recipe: Recipe) -> TrainState:
        """The state before the first step."""
        return cls(params, recipe.optimizer().init(params), jnp.zeros((), jnp.int32))


def make_teacher(teacher: Model, parts: int = 1, mesh: Mesh | None = None) -> Callable[[TripletArrays], jax.Array]:
    """A compiled function from a batch of B triplets, K descriptors each, to the frozen teacher's tokens of their 2B pairs at
    full length, [2B, 1 + 2K, d] (of ELViS [2B, 2K, d]); `parts` and `mesh` as in a step."""
    (graph, params), platform = nnx.split(teacher), _platform(mesh)

    def tokens_of(params: nnx.State, batch: TripletArrays) -> jax.Array:
        return nnx.merge(graph, params)(*pairs(batch)).tokens

    def forward(params: nnx.State, batch: TripletArrays) -> jax.Array:
        triplets, full = batch.anchor.features.shape[:2]
        split = parts_of(triplets, (full, full), parts, platform)
        if split == 1:
            return tokens_of(params, batch)
        tokens = jax.lax.map(
            lambda sets: tokens_of(params, dataclasses.replace(batch, **sets)), split_parts(batch, split)
        )
        return tokens.reshape(-1, *tokens.shape[2:])

    compiled = jax.jit(over_shares(forward, mesh, (EVERYWHERE, BATCH_AXES), BATCH_AXIS))
    return lambda batch: compiled(params, batch)


def make_loss(graph: nnx.GraphDef, recipe: Recipe) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """`loss(params, batch, teacher tokens or None, rows, totals) -> (loss, parts)`: BCE, plus β times the token loss.

    `rows` are the padded numbers of query and database descriptors to compute with, at least the drawn lengths. `totals`
    are those of the step where the batch is a share of it; None: of the batch.
    """

    def loss(
        params: nnx.State, batch: TripletArrays, teacher: jax.Array | None, rows: Rows, totals: Totals | None = None
    ) -> tuple[Any, Any]:
        query, database = (side.truncate(count) for side, count in zip(pairs(batch), rows))
        short_query, short_database = shorten(query, batch.lengths[0]), shorten(database, batch.lengths[1])
        model, labels = nnx.merge(graph, params), pair_labels(batch.anchor.features.shape[0])
        totals = count_totals(batch, rows, recipe.distil_padding) if totals is None else totals
        real = real_pairs(batch)
        if teacher is None:
            logits = model.pair_logits(short_query, short_database, train=True)
            bce = matching_loss(logits, labels, real, totals.pairs)
            return bce, _parts(bce, logits, labels, real, totals)
        out = model(short_query, short_database, train=True)
        bce = matching_loss(out.logit, labels, real, totals.pairs)
        first = out.tokens.shape[1] - query.count - database.count  # AMES's matching token; ELViS has none
        after = first + batch.anchor.count
        target = jnp.concatenate(
            [teacher[:, : first + query.count], teacher[:, after : after + database.count]], axis=1
        )
        kept = kept_tokens(batch, rows, recipe.distil_padding)[:, 1 - first :]
        distil = distillation_loss(out.tokens, jax.lax.stop_gradient(target), kept, totals.tokens)
        parts = {**_parts(bce, out.logit, labels, real, totals), "distillation": distil}
        return bce + recipe.distillation * distil, parts

    return loss


def _parts(
    bce: jax.Array, logits: jax.Array, labels: jax.Array, real: jax.Array, totals: Totals
) -> dict[str, jax.Array]:
    right = ((logits > 0) == (labels > 0.5)) & real
    return {"bce": bce, "accuracy": jnp.sum(right, dtype=jnp.float32) / totals.pairs}


def make_gradient(graph: nnx.GraphDef, recipe: Recipe, mesh: Mesh | None) -> Callable[..., Any]:
    """`gradient(params, batch, teacher, rows) -> ((loss, parts), gradient)` of a whole batch.

    Every device takes its share in parts (`parts_of`) and adds their gradients up in float32; one all-reduce, in
    float32 whatever the compute type, adds the shares.
    """
    differentiate, platform = jax.value_and_grad(make_loss(graph, recipe), has_aux=True), _platform(mesh)

    def gradient(params: nnx.State, batch: TripletArrays, teacher: jax.Array | None, rows: Rows) -> Any:
        def share(params: nnx.State, batch: TripletArrays, teacher: jax.Array | None) -> Any:
            totals = summed(count_totals(batch, rows, recipe.distil_padding), mesh)
            parts = parts_of(batch.anchor.features.shape[0], rows, recipe.accumulate, platform)
            if parts == 1:
                return summed(differentiate(params, batch, teacher, rows, totals), mesh)

            def one(part: tuple[dict[str, Any], jax.Array | None]) -> Any:
                return differentiate(params, dataclasses.replace(batch, **part[0]), part[1], rows, totals)

            split = split_parts(batch, parts), jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), teacher)
            zeros = jax.tree.map(
                lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, jax.tree.map(lambda a: a[0], split))
            )
            sums, _ = jax.lax.scan(lambda so_far, part: (jax.tree.map(jnp.add, so_far, one(part)), None), zeros, split)
            return summed(sums, mesh)

        return over_shares(share, mesh, (EVERYWHERE, BATCH_AXES, BATCH_AXIS), EVERYWHERE)(params, batch, teacher)

    return gradient


def _platform(mesh: Mesh | None) -> str:
    """Kind of device that a step runs on: "cpu", "gpu", "tpu"."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def make_step(
    graph: nnx.GraphDef, recipe: Recipe, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`step(state, batch, teacher tokens or None, rows) -> (state, metrics)`: compiled per `rows`, reuses the old state.

    On a `mesh` the batch is split over its devices and the state is on all of them; None: wherever the arrays are.
    Metrics (float32 scalars): loss, bce, accuracy, distillation (student), gradient_norm, learning_rate.
    """
    gradient_of, optimizer = make_gradient(graph, recipe, mesh), recipe.optimizer()

    def step(
        state: TrainState, batch: TripletArrays, teacher: jax.Array | None, rows: Rows
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, parts), gradient = gradient_of(state.params, batch, teacher, rows)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        rate = recipe.schedule(state.step)
        metrics = {"loss": value, **parts, "gradient_norm": optax.tree.norm(gradient), "learning_rate": rate}
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, optimizer_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0, static_argnums=3)
