"""The training loop of teacher, student and detector: batches in, checkpoints and logs out; survives kills, resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import jax
import numpy as np

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import need_space
from ames_jax.runtime.paths import is_remote
from ames_jax.runtime.preemption import Interrupted, StoppedEarly, StopRequests
from ames_jax.runtime.processes import alone, as_lead, is_lead
from ames_jax.training.checkpoints import RunCheckpoints
from ames_jax.training.log import TrainingLog


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Places and intervals of what a run writes.

    Attributes:
      directory: of checkpoints, logs and results; all processes must see the same one.
      label: the run in what is printed ("teacher", "student", "detector").
      log_every: steps between figures in the log.
      validate_every: steps between validations.
      checkpoint_every: steps between checkpoints.
      checkpoint_minutes: and minutes between them, looked at every `log_every` steps; None: steps alone.
      keep: number of newest checkpoints that stay.
      profile: (first, last): steps from `first` until before `last` are recorded, for TensorBoard's profile page or Perfetto.
    """

    directory: Path
    label: str
    log_every: int = 10
    validate_every: int = 100
    checkpoint_every: int = 100
    checkpoint_minutes: float | None = None
    keep: int = 2
    profile: tuple[int, int] | None = None


class Task(Protocol):
    """A thing to train. Its state is a tree of arrays with a field `step` (int32, the number of steps done).

    Attributes:
      steps: optimizer steps of the whole training.
      counts: what one step works on over all processes, e.g. {"images": 48}; the log tells the rates.
      score: the figure of a validation by which the best state is chosen.
      remedy: advice for a user whose loss is not finite.
      facts: plain JSON that is kept in every checkpoint.
    """

    steps: int
    counts: Mapping[str, int]
    score = "map"
    remedy = "Lower optimizer.learning_rate"
    facts: Mapping[str, Any] = MappingProxyType({})

    def initial_state(self) -> Any:
        """The state before the first step, on the devices."""

    def batches(self, first: int) -> Iterator[Any]:
        """The batches of the steps from `first` on, on the devices, the same in every run."""

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        """The state after one more step, and figures (scalars), among them "loss" and "accuracy"; `state` is used up."""

    def batch_facts(self, batch: Any) -> dict[str, Any]:
        """Facts that tell a batch from others, named where a loss is not finite; whole numbers are logged."""

    def validate(self, state: Any) -> dict[str, float]:
        """Figures, the same in every process."""

    def keep_best(self, state: Any, done: int, figures: Mapping[str, float]) -> None:
        """Keeps a state that has validated better than all before, after `done` steps, where a task does."""


def train(task: Task, settings: FitSettings) -> Any:
    """Does all steps of a task that are left, from the newest checkpoint where there is one, and returns the last state.

    Raises:
      StoppedEarly: after SIGTERM, state saved.
      UserError: a loss that is not finite (names step and batch); a disk that is full; another run in the directory.
    """
    with alone(settings.directory), StopRequests() as stop:
        return _Run(task, settings, stop).to_the_end()


class _Run:
    """One run of a task: what its steps share."""

    def __init__(self, task: Task, settings: FitSettings, stop: StopRequests) -> None:
        self.task, self.settings, self.stop = task, settings, stop
        self.checkpoints = RunCheckpoints(settings.directory / "checkpoints", settings.keep)
        self.state, position = task.initial_state(), {}
        if self.checkpoints.latest() is not None:
            self.state, position = self.checkpoints.restore(self.state)
        if is_lead() and not is_remote(settings.directory):
            # As many checkpoints as are kept, and the one that is being written; those of a run that goes on are there.
            size = sum(array.nbytes for array in jax.tree.leaves(self.state))
            need_space(settings.directory, size * (1 if position else settings.keep + 1))
        self.first = position.get("step", 0)
        self.best, self.validated = position.get("best", -np.inf), position.get("validated", -1)
        logged = self.first if position else None
        self.log = TrainingLog(settings.directory, settings.label, logged, task.steps, task.counts)
        self.unchecked: tuple[int, Any, dict[str, jax.Array]] | None = None
        self.saved_at = time.monotonic()

    def to_the_end(self) -> Any:
        """All steps that are left."""
        with contextlib.closing(self.checkpoints), self.log:
            try:
                if self.first % self.settings.validate_every == 0 or self.first == self.task.steps:
                    self._validate(self.first)
                self._train()
                self._save(self.task.steps, wait=True)
            except Interrupted as interrupted:
                raise self._stopped(int(jax.device_get(self.state.step))) from interrupted
        return self.state

    def _train(self) -> None:
        settings, steps = self.settings, self.task.steps
        with contextlib.closing(self.task.batches(self.first)) as batches, contextlib.ExitStack() as trace:
            for done, batch in zip(range(self.first + 1, steps + 1), self.log.waiting(batches)):
                self._trace(trace, done - 1)
                # Nothing moves between host and devices in a step but what is moved on purpose.
                with jax.transfer_guard("disallow"):
                    self.state, figures = self.task.step(self.state, batch)
                # The loss of the step before is read while this step runs, so that the device never waits for Python.
                self._check()
                self.unchecked = done, batch, figures
                self.log.step()
                validates = done % settings.validate_every == 0 or done == steps
                logs = validates or done % settings.log_every == 0
                if logs:
                    self.log.figures(done, self._figures(batch, figures))
                if validates:
                    self._check()
                    self._validate(done)
                if self.stop.after_step():
                    self._check()
                    raise self._stopped(done)
                if done < steps and self._checkpoint_due(done, logs):
                    self._check()
                    self._save(done)

    def _trace(self, trace: contextlib.ExitStack, step: int) -> None:
        """Starts or ends the recording of JAX's profiler in the lead process, before a step."""
        first, last = self.settings.profile or (None, None)
        if step == first and is_lead():
            trace.enter_context(jax.profiler.trace(str(self.settings.directory / "profile")))
        elif step == last:
            jax.block_until_ready(self.state)
            trace.close()

    def _figures(self, batch: Any, figures: dict[str, jax.Array]) -> dict[str, float]:
        facts = {name: value for name, value in self.task.batch_facts(batch).items() if isinstance(value, int)}
        return {name: float(value) for name, value in jax.device_get(figures).items()} | facts

    def _check(self) -> None:
        """Raises UserError where the loss of the last step is not finite."""
        if self.unchecked is None:
            return
        (done, batch, figures), self.unchecked = self.unchecked, None
        loss = float(jax.device_get(figures["loss"]))
        if not np.isfinite(loss):
            facts = ", ".join(
                f"{name.replace('_', ' ')} {value}" for name, value in self.task.batch_facts(batch).items()
            )
            raise UserError(
                f"{self.settings.label}: the loss of step {done - 1} is {loss} ({facts}); "
                f"the last good checkpoint is of step {self.checkpoints.latest()}. {self.task.remedy}"
            )

    def _validate(self, done: int) -> None:
        """Validates after `done` steps and keeps the best state; nothing where a run was saved after this validation."""
        if self.validated >= done:
            return
        with self.log.validation(done) as figures, self.stop.leaving_at_once():
            figures |= self.task.validate(self.state)
        if figures[self.task.score] > self.best:
            self.best = figures[self.task.score]
            self.task.keep_best(self.state, done, figures)
        self.validated = done

    def _checkpoint_due(self, done: int, logs: bool) -> bool:
        """Every so many steps or minutes; the lead process's clock counts, since all must save together."""
        minutes, late = self.settings.checkpoint_minutes, False
        if minutes is not None and logs:
            late = bool(as_lead(np.int32(time.monotonic() - self.saved_at > 60 * minutes)))
        return late or done % self.settings.checkpoint_every == 0

    def _stopped(self, done: int) -> StoppedEarly:
        if done:
            self._save(done, wait=True)
        return StoppedEarly(f"{self.settings.label} saved at step {done}; run the same command again to go on")

    def _save(self, done: int, wait: bool = False) -> None:
        self.log.flush()
        position = {"step": done, "best": float(self.best), "validated": self.validated, **self.task.facts}
        self.checkpoints.save(done, self.state, position, wait)
        self.saved_at = time.monotonic()
