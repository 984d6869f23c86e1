"""The training loop: batches in, checkpoints, logs and the best model out; survives kills and resumes exactly."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from ames_jax.checkpoints import RunCheckpoints, facts_of, read_model, save_model
from ames_jax.data.pipeline import TripletBatch, TripletPipeline, place_on, prefetch_to_device
from ames_jax.errors import UserError
from ames_jax.history import History
from ames_jax.sharding import data_mesh
from ames_jax.similarity import AMES
from ames_jax.training import Recipe, TrainState, TripletArrays, make_step, make_teacher

STOPPED_EARLY = 75  # exit code: saved after SIGTERM, run the same command again to go on

Validate = Callable[[AMES], dict[str, float]]


class StoppedEarly(Exception):
    """SIGTERM arrived and the state was saved; the same command goes on from there."""


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """Where a run writes and how often.

    Attributes:
      directory: of checkpoints, logs, and the models `best` and `last`.
      label: shown in the progress bar ("teacher", "student").
      log_every: steps between lines of the log.
      validate_every: steps between validations.
      checkpoint_every: steps between checkpoints.
      keep: last checkpoints that stay.
      facts: plain JSON that is saved with every model (data set, …).
    """

    directory: Path
    label: str
    log_every: int = 10
    validate_every: int = 100
    checkpoint_every: int = 100
    keep: int = 2
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def finished(directory: Path) -> bool:
    """True where a run in this directory went to its end."""
    return (directory / "last").is_dir() and bool(facts_of(directory / "last").get("finished"))


def fit(
    model: AMES,
    recipe: Recipe,
    pipeline: TripletPipeline,
    settings: FitSettings,
    validate: Validate,
    teacher: AMES | None,
) -> AMES:
    """Trains `model` (or goes on with the run in the directory) and returns the best model by validation mAP.

    Args:
      model: initial parameters; replaced by those of the newest checkpoint where there is one.
      validate: model → figures, among them "map".
      teacher: frozen teacher of a student, else None.

    Raises:
      StoppedEarly: after SIGTERM, state saved.
      UserError: a loss that is not finite (with step, lengths and ids of the batch); a disk that is full.
    """
    return _Run(model, recipe, pipeline, settings, validate, teacher).to_the_end()


class _Run:
    """One training run: what the steps share."""

    def __init__(
        self, model: AMES, recipe: Recipe, pipeline: TripletPipeline, settings: FitSettings, validate: Validate,
        teacher: AMES | None,
    ):  # fmt: skip
        self.recipe, self.pipeline, self.settings, self.validate = recipe, pipeline, settings, validate
        mesh = data_mesh()
        if pipeline.batch % mesh.size:
            raise UserError(f"batch {pipeline.batch} is not divisible by the {mesh.size} devices; change data.batch")
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self.graph, params = nnx.split(model)
        # A copy: steps reuse the memory of the state, and the caller's model (or a teacher that lent it arrays) lives on.
        params = jax.tree.map(jnp.copy, params)
        self.state = jax.device_put(TrainState.create(params, recipe), self._replicated)
        self._step = make_step(self.graph, recipe)
        self._teach = make_teacher(teacher) if teacher is not None else None
        self.checkpoints = RunCheckpoints(settings.directory / "checkpoints", settings.keep)
        self.best = -np.inf
        self.first = 0
        if self.checkpoints.latest() is not None:
            self.state, position = self.checkpoints.restore(self.state)
            self.first, self.best = position["step"], position["best"]
        self._stop = False

    def to_the_end(self) -> AMES:
        """All steps that are left, then the final models."""
        handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        history = History(self.settings.directory, self.first)
        try:
            if self.first == 0:
                self._validated(0, history)
            self._train(history)
        finally:
            signal.signal(signal.SIGTERM, handler)
            history.close()
        self._save(self.recipe.steps, wait=True)
        self.checkpoints.close()
        facts = {**self.settings.facts, "step": self.recipe.steps, "finished": True}
        save_model(self._model(), self.settings.directory / "last", facts)
        return read_model(self.settings.directory / "best")

    def _train(self, history: History) -> None:
        last: tuple[TripletBatch, dict[str, jax.Array]] | None = None
        clock = _Clock(2 * self.pipeline.batch)
        bar = tqdm(
            total=self.recipe.steps,
            initial=self.first,
            desc=self.settings.label,
            unit="step",
            disable=None,
            smoothing=0.05,
        )
        for batch in self._batches():
            metrics = self._one(batch)
            # The figures of the step before are read while this one runs, so that the device never waits for Python.
            if last is not None:
                self._check(*last)
            last, done = (batch, metrics), batch.step + 1
            bar.update()
            if done % self.settings.log_every == 0 or done == self.recipe.steps:
                values = self._logged(batch, metrics, clock)
                history.write(done, values)
                bar.set_postfix(
                    loss=f"{values['loss']:.3f}",
                    acc=f"{values['accuracy']:.2f}",
                    pairs_s=f"{values['pairs_per_second']:.0f}",
                )
            if done % self.settings.validate_every == 0 or done == self.recipe.steps:
                with clock.paused():
                    self._check(*last)
                    figures = self._validated(done, history)
                    bar.write(_period_line(self.settings.label, done, self.recipe.steps, values, figures))
            if self._stop:
                self._check(*last)
                self._save(done, wait=True)
                bar.close()
                self.checkpoints.close()
                raise StoppedEarly(f"{self.settings.label} saved at step {done}; run the same command again to go on")
            if done % self.settings.checkpoint_every == 0 and done < self.recipe.steps:
                self._check(*last)
                self._save(done)
        bar.close()

    def _batches(self) -> Iterator[TripletBatch]:
        batches = prefetch_to_device(self.pipeline.batches(self.first), place_on(self._split))
        for batch in batches:
            if batch.step >= self.recipe.steps:
                break
            yield batch
        batches.close()

    def _one(self, batch: TripletBatch) -> dict[str, jax.Array]:
        lengths = np.array([batch.query_length, batch.database_length], np.int32)
        arrays = TripletArrays(batch.anchor, batch.positive, batch.negative, jax.device_put(lengths, self._replicated))
        teacher = self._teach(arrays) if self._teach is not None else None
        rows = tuple(min(self.recipe.bucket(int(n)), batch.anchor.count) for n in lengths)
        self.state, metrics = self._step(self.state, arrays, teacher, rows)
        return metrics

    def _check(self, batch: TripletBatch, metrics: dict[str, jax.Array]) -> None:
        if np.isfinite(float(metrics["loss"])):
            return
        kept = self.checkpoints.latest()
        raise UserError(
            f"{self.settings.label}: the loss of step {batch.step} is {float(metrics['loss'])} (query length "
            f"{batch.query_length}, database length {batch.database_length}, images {batch.ids.ravel().tolist()}); "
            f"the last good checkpoint is of step {kept}. Lower the learning rate or set optimizer.clip"
        )

    def _logged(self, batch: TripletBatch, metrics: dict[str, jax.Array], clock: _Clock) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics.items()}
        return {
            **values, "query_length": batch.query_length, "database_length": batch.database_length,
            "pairs_per_second": clock.rate(batch.step),
        }  # fmt: skip

    def _validated(self, done: int, history: History) -> dict[str, float]:
        model = self._model()
        figures = self.validate(model)
        history.write(done, {f"validation_{name}": value for name, value in figures.items()})
        if figures["map"] > self.best:
            self.best = figures["map"]
            # λ and γ at which that was measured: what a search with this model uses.
            chosen = {name: figures[name] for name in ("lam", "gamma") if name in figures}
            facts = {**self.settings.facts, "step": done, "validation_map": self.best, **chosen}
            save_model(model, self.settings.directory / "best", facts)
        return figures

    def _save(self, done: int, wait: bool = False) -> None:
        position = {"step": done, "best": float(self.best), "seed": self.pipeline.seed}
        self.checkpoints.save(done, self.state, position, wait)

    def _model(self) -> AMES:
        return nnx.merge(self.graph, jax.tree.map(jnp.copy, self.state.params))

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._stop = True


class _Clock:
    """Pairs per second since the last reading, validation and checkpoints left out."""

    def __init__(self, pairs: int):
        self._pairs, self._since, self._step = pairs, time.perf_counter(), None

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        steps = step - self._step if self._step is not None else 0
        rate = steps * self._pairs / (now - self._since)
        self._since, self._step = now, step
        return rate

    def paused(self) -> _Paused:
        return _Paused(self)


class _Paused:
    def __init__(self, clock: _Clock):
        self._clock = clock

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._clock._since += time.perf_counter() - self._start


def _period_line(label: str, done: int, steps: int, values: dict[str, float], figures: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    return (
        f"{label} step {done}/{steps}: loss {values['loss']:.3f}, accuracy {values['accuracy']:.3f}, "
        f"{values['pairs_per_second']:.0f} pairs/s; validation {shown}"
    )
