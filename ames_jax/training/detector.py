"""Training of the detector: a frozen backbone's features, pooled by their weights, must tell the classes apart."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from ames_jax.extraction.backbones import open_network
from ames_jax.extraction.detector import Detector, detector_weights, unit_length
from ames_jax.extraction.images import load_image, resize
from ames_jax.extraction.listing import list_images
from ames_jax.extraction.network import FeatureMap
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.runtime.devices import data_mesh, on_all, split_over
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import write
from ames_jax.training.kept_config import check_numbers, keep_config
from ames_jax.training.loop import FitSettings, Task, train

# Pooled features have length 1: this is how far apart two classes' logits can be at the start.
LOGIT_SCALE = 16.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetectorState:
    """State that a step changes: parameters {"detector", "classifier"}, running statistics, optimizer, steps done (int32)."""

    parameters: dict[str, Any]
    statistics: Any
    optimizer: Any
    step: jax.Array


def train_detector(config: ConfigDict, workdir: Path) -> Path:
    """Trains, or goes on where a killed run was, and returns the path of `detector.pt`.

    Raises:
      UserError: no labelled images, a setting that does not fit, a loss that is not finite.
      StoppedEarly: after SIGTERM, state saved.
    """
    check_numbers(config)
    keep_config(config, workdir)
    images, validation = split_images(config)
    network = open_network(config.backbone, config.weights, config.dtype, config.side)
    task = DetectorTask(config, images, validation, network)
    settings = FitSettings(
        directory=workdir,
        label="detector",
        log_every=config.log_every,
        validate_every=config.validate_every,
        checkpoint_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
    )
    write(f"detector: {len(images)} images of {images.classes} classes, {task.steps} steps")
    state = train(task, settings)
    target = workdir / "detector.pt"
    write_checkpoint(target, detector_weights(task.detector(state)))
    return target


class DetectorTask(Task):
    """Training of a detector, for the loop; its last state is its result."""

    score = "accuracy"

    def __init__(
        self, config: ConfigDict, images: LabelledImages, validation: LabelledImages, network: FeatureMap
    ) -> None:
        self._config, self._images, self._validation, self._width = config, images, validation, network.width
        mesh = data_mesh()
        if config.batch % mesh.size:
            raise UserError(f"batch {config.batch} is not divisible by the {mesh.size} devices; change --config.batch")
        self._per_epoch = len(images) // config.batch
        if self._per_epoch < 1:
            raise UserError(f"--config.batch={config.batch}: there are only {len(images)} training images")
        self.steps = max(1, round(config.optimizer.epochs * self._per_epoch))
        self.counts = {"images": config.batch}
        self._split, self._everywhere = split_over(mesh), on_all(mesh)
        schedule = optax.cosine_decay_schedule(config.optimizer.learning_rate, self.steps)
        self._optimizer = optax.adamw(schedule, weight_decay=config.optimizer.weight_decay)
        self._features, self._classes = network.features, images.classes
        self._graph, *self._fresh = nnx.split(Detector(network.width, nnx.Rngs(config.seed)), nnx.Param, nnx.BatchStat)
        self._network = jax.device_put(network.parameters, self._everywhere)
        self._step, self._right = jax.jit(self._update, donate_argnums=0), jax.jit(self._recognised)

    def initial_state(self) -> DetectorState:
        """A detector and a linear classifier at their initial values, on all devices."""
        detector, statistics = jax.tree.map(jnp.copy, self._fresh)
        kernel = 0.01 * jax.random.normal(jax.random.key(self._config.seed), (self._width, self._classes))
        parameters = {"detector": detector, "classifier": {"kernel": kernel, "bias": jnp.zeros(self._classes)}}
        optimizer = self._optimizer.init(parameters)
        return jax.device_put(DetectorState(parameters, statistics, optimizer, jnp.int32(0)), self._everywhere)

    def batches(self, first: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Images and labels of the steps from `first` on, read one step ahead."""
        with ThreadPoolExecutor(self._config.workers, "load") as threads, ThreadPoolExecutor(1) as ahead:
            read = functools.partial(self._images.batch, threads=threads)
            future = ahead.submit(read, *self._rows(first))
            for number in itertools.count(first + 1):
                batch, future = future.result(), ahead.submit(read, *self._rows(number))
                yield jax.device_put(batch, self._split)

    def _rows(self, number: int) -> tuple[np.ndarray, Sequence[int]]:
        """Images of a step and the seed of their crops: a pure function of the configuration's seed and the step."""
        epoch, place = divmod(number, self._per_epoch)
        order = np.random.default_rng((self._config.seed, epoch)).permutation(len(self._images))
        return order[place * self._config.batch : (place + 1) * self._config.batch], (self._config.seed, number)

    def step(
        self, state: DetectorState, batch: tuple[jax.Array, jax.Array]
    ) -> tuple[DetectorState, dict[str, jax.Array]]:
        return self._step(state, self._network, *batch)

    def batch_facts(self, batch: tuple[jax.Array, jax.Array]) -> dict[str, Any]:
        return {"labels": np.asarray(batch[1]).tolist()}

    def validate(self, state: DetectorState) -> dict[str, float]:
        """Share of the validation images whose class is recognised, from centre crops."""
        count, size, hits = len(self._validation), self._config.batch, 0
        with ThreadPoolExecutor(self._config.workers, "load") as threads:
            for start in range(0, count, size):
                rows = np.arange(start, start + size)
                images, labels = jax.device_put(self._validation.batch(rows % count, None, threads), self._split)
                recognised = np.asarray(self._right(state, self._network, images, labels))
                hits += int(recognised[rows < count].sum())
        return {"accuracy": hits / count}

    def _update(
        self, state: DetectorState, network: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[DetectorState, dict[str, jax.Array]]:
        """One optimizer step on images uint8 [B, S, S, 3] and labels int32 [B]; figures "loss" and "accuracy"."""
        features = jax.lax.stop_gradient(self._features(network, images))

        def loss_of(parameters: dict[str, Any]) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            # Running statistics are written to, and flax refuses that for variables of an outer trace: hence the copy.
            statistics = jax.tree.map(lambda array: array, state.statistics)
            detector = nnx.merge(self._graph, parameters["detector"], statistics)
            logits = class_logits(*detector(features, train=True), parameters["classifier"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (logits, nnx.state(detector, nnx.BatchStat))

        (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.parameters)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.parameters)
        after = DetectorState(optax.apply_updates(state.parameters, updates), statistics, optimizer, state.step + 1)
        return after, {"loss": loss, "accuracy": (logits.argmax(-1) == labels).mean()}

    def _recognised(self, state: DetectorState, network: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        """bool [B]: whether each image's class is recognised, with the running statistics."""
        pooling = self.detector(state)(self._features(network, images))
        return class_logits(*pooling, state.parameters["classifier"]).argmax(-1) == labels

    def detector(self, state: DetectorState) -> Detector:
        """The detector of a state."""
        return nnx.merge(self._graph, state.parameters["detector"], state.statistics)


def class_logits(features: jax.Array, weights: jax.Array, classifier: dict[str, jax.Array]) -> jax.Array:
    """float32 [B, classes] of features [B, P, C] that are pooled by weights [B, P]."""
    pooled = unit_length(jnp.einsum("bp,bpc->bc", weights, features, precision=jax.lax.Precision.HIGHEST))
    return LOGIT_SCALE * (pooled @ classifier["kernel"]) + classifier["bias"][None]


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Files with classes 0 … classes - 1 (int32 [N]); read as squares of `side` pixels."""

    paths: list[Path]
    labels: np.ndarray
    classes: int
    side: int
    crop: tuple[float, float]

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, rows: np.ndarray, seed: Sequence[int] | None, threads: Executor) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [B, S, S, 3] and labels int32 [B]; random crops and flips from `seed`, or centre crops (None).

        Raises UserError for an image that is broken.
        """

        def read(place: int) -> np.ndarray:
            image = load_image(self.paths[rows[place]])
            rng = None if seed is None else np.random.default_rng((*seed, place))
            return square(image, self.side, self.crop, rng)

        return np.stack(list(threads.map(read, range(len(rows))))), self.labels[rows]


def square(image: np.ndarray, side: int, crop: tuple[float, float], rng: np.random.Generator | None) -> np.ndarray:
    """A square of the image [H, W, 3], resized to `side`: the largest in the middle, or a random one, perhaps mirrored."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    if rng is not None:
        edge = max(1, round(edge * rng.uniform(*crop) ** 0.5))
        top, left = (int(rng.integers(0, size - edge + 1)) for size in (height, width))
    found = resize(image[top : top + edge, left : left + edge], side, side)
    return found[:, ::-1] if rng is not None and rng.random() < 0.5 else found


def split_images(config: ConfigDict) -> tuple[LabelledImages, LabelledImages]:
    """The training and the validation images of a configuration, every class in both.

    Raises:
      UserError: no images, fewer than two classes, or a class with a single image.
    """
    if not config.images:
        raise UserError("--config.images=DIR|LIST is needed: a sub-folder of images per class, or lines `path,label`")
    if not 0 < config.validation < 1:
        raise UserError(f"--config.validation={config.validation}: expected a share between 0 and 1")
    found = list_images(Path(config.images), Path(config.root) if config.root else None)
    labelled = [file for file in found.files if file.label >= 0]
    names, labels = np.unique([file.label for file in labelled], return_inverse=True)
    if len(names) < 2:
        raise UserError(f"--config.images={config.images}: {len(names)} classes; a detector needs two at least")
    held = np.zeros(len(labelled), bool)
    for label in range(len(names)):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(f"--config.images={config.images}: {labelled[rows[0]].id} is the only image of its class")
        rows = np.random.default_rng((config.seed, label)).permutation(rows)
        held[rows[: min(len(rows) - 1, max(1, round(config.validation * len(rows))))]] = True

    def part(rows: np.ndarray) -> LabelledImages:
        paths = [labelled[row].path for row in rows]
        return LabelledImages(paths, labels[rows].astype(np.int32), len(names), config.side, tuple(config.crop))

    return part(np.flatnonzero(~held)), part(np.flatnonzero(held))
