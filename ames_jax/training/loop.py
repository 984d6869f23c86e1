"""The training loop: batches in, checkpoints, logs and the best model out; survives kills and resumes exactly."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.model.ames import AMES
from ames_jax.model.weights import facts_of, model_fingerprint, read_model, save_model
from ames_jax.runtime.devices import data_mesh, local_copy, on_all, split_over
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.preemption import Interrupted, StoppedEarly, StopRequests
from ames_jax.runtime.processes import as_lead, check_equal, is_lead, wait_for_all
from ames_jax.training.checkpoints import RunCheckpoints
from ames_jax.training.log import History, Meter, NoHistory, Progress, Trace
from ames_jax.training.pipeline import TripletBatch, TripletPipeline, place_on, prefetch_to_device
from ames_jax.training.step import Recipe, TrainState, TripletArrays, make_step, make_teacher

Validate = Callable[[AMES], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Where a run writes and how often.

    Attributes:
      directory: of checkpoints, logs, and the models `best` and `last`; all processes must see the same one.
      label: shown in the progress bar ("teacher", "student").
      log_every: steps between lines of the log.
      validate_every: steps between validations.
      checkpoint_every: steps between checkpoints.
      checkpoint_minutes: and minutes between them, looked at every `log_every` steps; None: steps alone.
      keep: last checkpoints that stay.
      profile: (first, last): steps whose trace is recorded.
      facts: plain JSON that is saved with every model (data set, …).
    """

    directory: Path
    label: str
    log_every: int = 10
    validate_every: int = 100
    checkpoint_every: int = 100
    checkpoint_minutes: float | None = None
    keep: int = 2
    profile: tuple[int, int] | None = None
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
      validate: model → figures, among them "map"; equal in all processes.
      teacher: frozen teacher of a student, else None.

    Raises:
      StoppedEarly: after SIGTERM, state saved.
      UserError: a loss that is not finite (with step, lengths and ids of the batch); a disk that is full.
    """
    with StopRequests() as stop:
        return _Run(model, recipe, pipeline, settings, validate, teacher, stop).to_the_end()


class _Run:
    """One training run: what the steps share."""

    def __init__(
        self, model: AMES, recipe: Recipe, pipeline: TripletPipeline, settings: FitSettings, validate: Validate,
        teacher: AMES | None, stop: StopRequests,
    ):  # fmt: skip
        self.recipe, self.pipeline, self.settings, self.validate = recipe, pipeline, settings, validate
        mesh = data_mesh()
        if pipeline.filled % (mesh.size * recipe.accumulate):
            raise UserError(
                f"a batch of {pipeline.filled} triplets is not divisible by {mesh.size} devices × {recipe.accumulate} "
                "parts (data.accumulate); change data.batch"
            )
        self._split, self._everywhere, self._stop = split_over(mesh), on_all(mesh), stop
        self._config = model.config
        self.graph, params = nnx.split(model)
        # A copy: steps reuse the memory of the state, and the caller's model (or a teacher that lent it arrays) lives on.
        params = as_lead(jax.tree.map(jnp.copy, params))
        self.state = jax.device_put(TrainState.create(params, recipe), self._everywhere)
        self._step = make_step(self.graph, recipe, mesh)
        self._teach = None
        if teacher is not None:
            graph, frozen = nnx.split(teacher)
            teacher = nnx.merge(graph, jax.device_put(as_lead(frozen), self._everywhere))
            self._teach = make_teacher(teacher, recipe.accumulate, mesh)
        self.checkpoints = RunCheckpoints(settings.directory / "checkpoints", settings.keep)
        self.best, self.first, self._validated_step = -np.inf, 0, -1
        if self.checkpoints.latest() is not None:
            self.state, position = self.checkpoints.restore(self.state)
            self.first, self.best = position["step"], position["best"]
            self._validated_step = position["validated"]
        self._saved_at = time.monotonic()

    def to_the_end(self) -> AMES:
        """All steps that are left, then the final models."""
        directory, steps = self.settings.directory, self.recipe.steps
        history = History(directory, self.first) if is_lead() else NoHistory()
        trace = Trace(directory / "profile", self.settings.profile if is_lead() else None)
        try:
            if self.first % self.settings.validate_every == 0 or self.first == steps:
                self._validated(self.first, history)
            self._train(history, trace)
            self._save(steps, wait=True)
        except Interrupted as interrupted:
            done = int(jax.device_get(self.state.step))
            raise self._stopped(done) from interrupted
        finally:
            trace.close(self.state)
            history.close()
            self.checkpoints.close()
        model = self._model()
        check_equal(model_fingerprint(model), f"the {self.settings.label}'s parameters")
        facts = {**self.settings.facts, "step": steps, "finished": True}
        self._keep_model("last", model, facts)
        return read_model(directory / "best")

    def _train(self, history: History | NoHistory, trace: Trace) -> None:
        last: tuple[TripletBatch, dict[str, jax.Array]] | None = None
        meter, settings, steps = Meter(self.pipeline.batch, self.first), self.settings, self.recipe.steps
        with Progress(settings.label, self.first, steps) as progress:
            for batch in meter.waiting(self._batches()):
                trace.before_step(batch.step, self.state)
                metrics = self._one(batch)
                # The figures of the step before are read while this one runs, so that the device never waits for Python.
                if last is not None:
                    self._check(*last)
                last, done = (batch, metrics), batch.step + 1
                progress.step()
                validated = done % settings.validate_every == 0 or done == steps
                logged = validated or done % settings.log_every == 0
                if logged:
                    values = self._logged(batch, metrics, meter)
                    history.write(done, values)
                    progress.show(values)
                    progress.line(done, values)
                if validated:
                    with meter.paused():
                        self._check(*last)
                        progress.line(done, values, self._validated(done, history))
                if self._stop.after_step():
                    self._check(*last)
                    raise self._stopped(done)
                if done < steps and self._checkpoint_due(done, logged):
                    self._check(*last)
                    self._save(done)

    def _checkpoint_due(self, done: int, logged: bool) -> bool:
        """Every so many steps or minutes; the lead process's clock counts, since all must save together."""
        minutes, late = self.settings.checkpoint_minutes, False
        if minutes is not None and logged:
            late = bool(as_lead(np.int32(time.monotonic() - self._saved_at > 60 * minutes)))
        return late or done % self.settings.checkpoint_every == 0

    def _batches(self) -> Iterator[TripletBatch]:
        batches = prefetch_to_device(self.pipeline.batches(self.first), place_on(self._split))
        for batch in batches:
            if batch.step >= self.recipe.steps:
                break
            yield batch
        batches.close()

    def _one(self, batch: TripletBatch) -> dict[str, jax.Array]:
        lengths = np.array([batch.query_length, batch.database_length], np.int32)
        rows = tuple(min(self.recipe.bucket(int(n)), batch.anchor.count) for n in lengths)
        # Nothing moves between host and devices in a step but what is moved on purpose.
        with jax.transfer_guard("disallow"):
            lengths = jax.device_put(lengths, self._everywhere)
            arrays = TripletArrays(batch.anchor, batch.positive, batch.negative, lengths, batch.real)
            teacher = self._teach(arrays) if self._teach is not None else None
            self.state, metrics = self._step(self.state, arrays, teacher, rows)
        return metrics

    def _check(self, batch: TripletBatch, metrics: dict[str, jax.Array]) -> None:
        loss = float(jax.device_get(metrics["loss"]))
        if np.isfinite(loss):
            return
        raise UserError(
            f"{self.settings.label}: the loss of step {batch.step} is {loss} (query length {batch.query_length}, "
            f"database length {batch.database_length}, images {batch.ids.ravel().tolist()}); "
            f"the last good checkpoint is of step {self.checkpoints.latest()}. Lower the learning rate or set optimizer.clip"
        )

    def _logged(self, batch: TripletBatch, metrics: dict[str, jax.Array], meter: Meter) -> dict[str, float]:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        lengths = {"query_length": batch.query_length, "database_length": batch.database_length}
        return {**values, **lengths, **meter.read(batch.step)}

    def _validated(self, done: int, history: History | NoHistory) -> dict[str, float]:
        """Validates after `done` steps and keeps the best model; nothing where a run was saved after this validation."""
        if self._validated_step >= done:
            return {}
        model = self._model()
        with self._stop.leaving_at_once():
            figures = self.validate(model)
        history.write(done, {f"validation_{name}": value for name, value in figures.items()})
        if figures["map"] > self.best:
            self.best = figures["map"]
            # λ and γ at which that was measured: what a search with this model uses.
            chosen = {name: figures[name] for name in ("lam", "gamma") if name in figures}
            facts = {**self.settings.facts, "step": done, "validation_map": self.best, **chosen}
            self._keep_model("best", model, facts)
        self._validated_step = done
        return figures

    def _keep_model(self, name: str, model: AMES, facts: dict[str, Any]) -> None:
        if is_lead():
            save_model(model, self.settings.directory / name, facts)
        wait_for_all(f"{self.settings.label} {name} {facts['step']}")

    def _stopped(self, done: int) -> StoppedEarly:
        if done:
            self._save(done, wait=True)
        return StoppedEarly(f"{self.settings.label} saved at step {done}; run the same command again to go on")

    def _save(self, done: int, wait: bool = False) -> None:
        position = {
            "step": done, "best": float(self.best), "validated": self._validated_step, "seed": self.pipeline.seed,
            "model": dataclasses.asdict(self._config),
        }  # fmt: skip
        self.checkpoints.save(done, self.state, position, wait)
        self._saved_at = time.monotonic()

    def _model(self) -> AMES:
        return nnx.merge(self.graph, local_copy(self.state.params))
