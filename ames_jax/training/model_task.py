"""Teacher or student as a task of the training loop: steps on triplets, the best model by validation mAP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ames_jax.model.kinds import Model, fields_of
from ames_jax.model.released import folder_of, load_model
from ames_jax.model.weights import MODEL_FILE, facts_of, find_model, model_fingerprint, read_model, save_model
from ames_jax.runtime.devices import data_mesh, local_copy, on_all
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.processes import as_lead, check_equal, is_lead, wait_for_all
from ames_jax.training.loop import FitSettings, Task, train
from ames_jax.training.pipeline import TripletBatch, TripletPipeline, place_on, prefetch_to_device
from ames_jax.training.step import Recipe, TrainState, make_step, make_teacher

Validate = Callable[[Model], dict[str, float]]


def fit(task: ModelTask) -> Model:
    """Trains the task's model (or goes on with the run in its directory) and returns the best one by validation mAP.

    Raises:
      StoppedEarly: after SIGTERM, state saved.
      UserError: a loss that is not finite (with step, lengths and ids of the batch); a disk that is full.
    """
    last = task.model(train(task, task.settings))
    check_equal(model_fingerprint(last), f"the {task.settings.label}'s parameters")
    task.keep("last", last, task.steps, finished=True)
    return read_model(task.settings.directory / "best")


def finished(directory: Path) -> bool:
    """True where a run in this directory went to its end."""
    return (directory / "last" / MODEL_FILE).is_file() and bool(facts_of(directory / "last").get("finished"))


def load_finished(key: str, path: str) -> Model:
    """The model that a key names; raises UserError for the run of a training that was stopped before its end."""
    folder = folder_of(path)
    if folder.is_dir():
        best = find_model(folder)
        if best != folder and (best.parent / "checkpoints").is_dir() and not finished(best.parent):
            raise UserError(
                f"--config.{key}={path}: this training has not finished (its best model is of step "
                f"{facts_of(best).get('step', '?')}): give its command again to go on, or take that model: "
                f"--config.{key}={best}"
            )
    return load_model(path)


class ModelTask(Task):
    """Training of a model on triplets, for the loop.

    Args:
      model: initial parameters; replaced by those of the newest checkpoint where there is one.
      validate: model → figures, among them "map"; equal in all processes.
      teacher: frozen teacher of a student, else None.
      facts: plain JSON that is saved with the models `best` and `last` (data set, …).

    Raises UserError for a batch that the devices cannot share.
    """

    remedy = "Lower optimizer.learning_rate or set optimizer.clip"

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        pipeline: TripletPipeline,
        settings: FitSettings,
        validate: Validate,
        teacher: Model | None = None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._mesh = mesh = data_mesh()
        if pipeline.filled % (mesh.size * recipe.accumulate):
            raise UserError(
                f"a batch of {pipeline.filled} triplets is not divisible by {mesh.size} devices × {recipe.accumulate} "
                "parts (data.accumulate); change data.batch"
            )
        self._recipe, self._pipeline, self._measure, self.settings = recipe, pipeline, validate, settings
        self._model_facts = facts
        self.steps = recipe.steps
        self.counts = {"pairs": 2 * pipeline.batch, "images": 3 * pipeline.batch}
        self.facts = {"seed": pipeline.seed, "model": fields_of(model.config)}
        self._graph, self._initial = nnx.split(model)
        self.compiled_step = make_step(self._graph, recipe, mesh)
        self._teach = None
        if teacher is not None:
            graph, frozen = nnx.split(teacher)
            teacher = nnx.merge(graph, jax.device_put(as_lead(frozen), on_all(mesh)))
            self._teach = make_teacher(teacher, recipe.accumulate, mesh)

    def initial_state(self) -> TrainState:
        """The optimizer at its start, and a copy of the model's parameters: steps reuse the memory of the state, and the
        caller's model (or a teacher that lent it arrays) lives on."""
        params = as_lead(jax.tree.map(jnp.copy, self._initial))
        return jax.device_put(TrainState.create(params, self._recipe), on_all(self._mesh))

    def batches(self, first: int) -> Iterator[TripletBatch]:
        return prefetch_to_device(self._pipeline.batches(first), place_on(self._mesh))

    def step(self, state: TrainState, batch: TripletBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        full = batch.arrays.anchor.count
        rows = tuple(min(self._recipe.bucket(length), full) for length in batch.lengths)
        teacher = self._teach(batch.arrays) if self._teach is not None else None
        return self.compiled_step(state, batch.arrays, teacher, rows)

    def batch_facts(self, batch: TripletBatch) -> dict[str, Any]:
        query, database = batch.lengths
        return {"query_length": query, "database_length": database, "images": batch.ids.ravel().tolist()}

    def validate(self, state: TrainState) -> dict[str, float]:
        return self._measure(self.model(state))

    def keep_best(self, state: TrainState, done: int, figures: Mapping[str, float]) -> None:
        """Saves the model `best` with λ and γ at which its figure was measured: what a search with it uses."""
        chosen = {name: figures[name] for name in ("lam", "gamma") if name in figures}
        self.keep("best", self.model(state), done, validation_map=figures["map"], **chosen)

    def keep(self, name: str, model: Model, step: int, **facts: Any) -> None:
        """Saves a model in the run's directory; returns in all processes when it is there."""
        if is_lead():
            save_model(model, self.settings.directory / name, {**self._model_facts, "step": step, **facts})
        wait_for_all(f"{self.settings.label} {name} {step}")

    def model(self, state: TrainState) -> Model:
        """The model of a state, with arrays of its own on one device."""
        return nnx.merge(self._graph, local_copy(state.params))
