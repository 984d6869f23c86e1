"""Training of the detector: a frozen backbone's features, pooled by their weights, must tell the classes apart."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from ames_jax.extraction.backbones import open_network
from ames_jax.extraction.detector import Detector, detector_weights, unit_length
from ames_jax.extraction.network import FeatureMap
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.runtime.devices import data_mesh
from ames_jax.runtime.errors import UserError
from ames_jax.training.checkpoints import RunCheckpoints
from ames_jax.training.detector_images import LabelledImages, split_images
from ames_jax.training.log import History

# Pooled features have length 1: this is how far apart two classes' logits can be at the start.
LOGIT_SCALE = 16.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetectorState:
    """What a step changes: parameters {"detector", "classifier"}, running statistics, the optimizer, the step's number."""

    parameters: dict[str, Any]
    statistics: Any
    optimizer: Any
    step: jax.Array


def train_detector(config: ConfigDict, workdir: Path) -> Path:
    """Trains, or goes on where a killed run was, and gives the path of `detector.pt`.

    Raises:
      UserError: no labelled images, a setting that does not fit, a loss that is not finite.
    """
    train, validation = split_images(config)
    network = open_network(config.backbone, config.weights, config.dtype, config.side)
    return _Run(config, workdir, train, validation, network).to_the_end()


class _Run:
    """One training run: what its steps share."""

    def __init__(
        self, config: ConfigDict, workdir: Path, train: LabelledImages, validation: LabelledImages, network: FeatureMap
    ) -> None:
        self.config, self.workdir, self.train, self.validation = config, workdir, train, validation
        mesh = data_mesh()
        if config.batch % mesh.size:
            raise UserError(f"batch {config.batch} is not divisible by the {mesh.size} devices; change --config.batch")
        self.per_epoch = len(train) // config.batch
        if self.per_epoch < 1:
            raise UserError(f"--config.batch={config.batch}: there are only {len(train)} training images")
        self.steps = max(1, round(config.optimizer.epochs * self.per_epoch))
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        schedule = optax.cosine_decay_schedule(config.optimizer.learning_rate, self.steps)
        self.optimizer = optax.adamw(schedule, weight_decay=config.optimizer.weight_decay)
        self.graph, state = new_state(network.width, train.classes, self.optimizer, config.seed)
        self.state = jax.device_put(state, everywhere)
        self.network = jax.device_put(network.parameters, everywhere)
        self._step = jax.jit(functools.partial(step, self.graph, self.optimizer, network.features), donate_argnums=0)
        self._right = jax.jit(functools.partial(right, self.graph, network.features))

    def to_the_end(self) -> Path:
        """All steps that are left."""
        target = self.workdir / "detector.pt"
        checkpoints = RunCheckpoints(self.workdir / "checkpoints", self.config.checkpoint.keep)
        if checkpoints.latest() is not None:
            self.state, _ = checkpoints.restore(self.state)
        first = int(self.state.step)
        print(f"detector: {len(self.train)} images of {self.train.classes} classes, {self.steps} steps")
        with closing(History(self.workdir, first)) as history, closing(checkpoints):
            self._train(first, history, checkpoints)
        write_checkpoint(target, detector_weights(self._detector()))
        return target

    def _train(self, first: int, history: History, checkpoints: RunCheckpoints) -> None:
        every = self.config.checkpoint.every
        bar = tqdm(total=self.steps, initial=first, desc="detector", unit="step", disable=None)
        for done, (images, labels) in enumerate(self._batches(first), start=first + 1):
            self.state, figures = self._step(self.state, self.network, images, labels)
            bar.update()
            last = done == self.steps
            if last or done % self.config.log_every == 0:
                history.write(done, self._checked(figures, done))
            if last or done % self.config.validate_every == 0:
                accuracy = self._validated()
                history.write(done, {"validation_accuracy": accuracy})
                bar.write(f"detector step {done}/{self.steps}: validation accuracy {accuracy:.3f}")
            if last or done % every == 0:
                checkpoints.save(done, self.state, {"step": done})
        bar.close()

    def _batches(self, first: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Batches of the steps from `first` on: a pure function of seed and step, read one step ahead."""
        with ThreadPoolExecutor(self.config.workers, "load") as threads, ThreadPoolExecutor(1) as ahead:
            read = functools.partial(self.train.batch, threads=threads)
            future = None
            for number in range(first, self.steps):
                batch = future.result() if future is not None else read(*self._rows(number))
                future = ahead.submit(read, *self._rows(number + 1)) if number + 1 < self.steps else None
                yield jax.device_put(batch, self._split)

    def _rows(self, number: int) -> tuple[np.ndarray, Sequence[int]]:
        epoch, place = divmod(number, self.per_epoch)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.train))
        return order[place * self.config.batch : (place + 1) * self.config.batch], (self.config.seed, number)

    def _checked(self, figures: dict[str, jax.Array], done: int) -> dict[str, float]:
        values = {name: float(value) for name, value in figures.items()}
        if not math.isfinite(values["loss"]):
            raise UserError(f"the loss of step {done} is {values['loss']}: lower --config.optimizer.learning_rate")
        return values

    def _validated(self) -> float:
        """Share of the validation images whose class is recognised, from centre crops."""
        count, batch, hits = len(self.validation), self.config.batch, 0
        with ThreadPoolExecutor(self.config.workers, "load") as threads:
            for start in range(0, count, batch):
                rows = np.arange(start, start + batch)
                images, labels = jax.device_put(self.validation.batch(rows % count, None, threads), self._split)
                found = np.asarray(self._right(self.state, self.network, images, labels))
                hits += int(found[rows < count].sum())
        return hits / count

    def _detector(self) -> Detector:
        return nnx.merge(self.graph, self.state.parameters["detector"], self.state.statistics)


def new_state(
    width: int, classes: int, optimizer: optax.GradientTransformation, seed: int
) -> tuple[nnx.GraphDef, DetectorState]:
    """A detector and a linear classifier at their initial values."""
    graph, parameters, statistics = nnx.split(Detector(width, nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)
    kernel = 0.01 * jax.random.normal(jax.random.key(seed), (width, classes))
    everything = {"detector": parameters, "classifier": {"kernel": kernel, "bias": jnp.zeros(classes)}}
    return graph, DetectorState(everything, statistics, optimizer.init(everything), jnp.zeros((), jnp.int32))


def logits_of(features: jax.Array, weights: jax.Array, classifier: dict[str, jax.Array]) -> jax.Array:
    """float32 [B, classes] of features [B, P, C] that are pooled by weights [B, P]."""
    pooled = unit_length(jnp.einsum("bp,bpc->bc", weights, features, precision=jax.lax.Precision.HIGHEST))
    return LOGIT_SCALE * (pooled @ classifier["kernel"]) + classifier["bias"][None]


def step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    features_of: Callable[[Any, jax.Array], jax.Array],
    state: DetectorState,
    network: Any,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[DetectorState, dict[str, jax.Array]]:
    """One optimizer step on images uint8 [B, S, S, 3] and labels int32 [B]; figures "loss" and "accuracy"."""
    features = jax.lax.stop_gradient(features_of(network, images))

    def loss_of(parameters: dict[str, Any]) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        # Running statistics are written to, and flax refuses that for variables of an outer trace: hence the copy.
        detector = nnx.merge(graph, parameters["detector"], jax.tree.map(lambda array: array, state.statistics))
        logits = logits_of(*detector(features, train=True), parameters["classifier"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, nnx.state(detector, nnx.BatchStat))

    (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.parameters)
    updates, inner = optimizer.update(gradients, state.optimizer, state.parameters)
    changed = DetectorState(optax.apply_updates(state.parameters, updates), statistics, inner, state.step + 1)
    return changed, {"loss": loss, "accuracy": (logits.argmax(-1) == labels).mean()}


def right(
    graph: nnx.GraphDef,
    features_of: Callable[[Any, jax.Array], jax.Array],
    state: DetectorState,
    network: Any,
    images: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """bool [B]: whether each image's class is recognised, with the running statistics."""
    detector = nnx.merge(graph, state.parameters["detector"], state.statistics)
    logits = logits_of(*detector(features_of(network, images)), state.parameters["classifier"])
    return logits.argmax(-1) == labels
