"""Labelled images for training a detector: split, cropped and batched."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ames_jax.extraction.images import load_image, resize
from ames_jax.extraction.listing import list_images
from ames_jax.runtime.errors import UserError


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
        raise UserError("--config.images=DIR|LIST is needed: a sub-folder of images a class, or lines `path,label`")
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
