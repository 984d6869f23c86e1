"""A folder of small pictures of a few scenes, its descriptors and a model: what search needs, made in a second."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from flax import nnx

from ames_jax import extract as extraction
from ames_jax.extraction.keypoints import detect
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.model.ames import AMESConfig
from ames_jax.model.kinds import Config, new_model
from ames_jax.model.weights import save_model

SCENES, VIEWS, DESCRIPTORS = 4, 3, 40


def scene(number: int) -> np.ndarray:
    """A texture of blobs, uint8 [200, 240, 3]."""
    rng = np.random.default_rng(number)
    picture = np.full((200, 240, 3), 120, np.uint8)
    for _ in range(60):
        centre, radius = rng.integers(0, 240, 2), int(rng.integers(3, 16))
        cv2.circle(picture, tuple(map(int, centre)), radius, tuple(map(int, rng.integers(0, 256, 3))), -1)
    return picture


def photograph(number: int, view: int) -> np.ndarray:
    """The scene from the `view`-th place: cut out, turned a little, with noise."""
    rng = np.random.default_rng(100 * number + view)
    turn = cv2.getRotationMatrix2D((120, 100), float(rng.uniform(-8, 8)), float(rng.uniform(0.9, 1.1)))
    picture = cv2.warpAffine(scene(number), turn, (240, 200), borderMode=cv2.BORDER_REFLECT)[20:180, 20:220]
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, views: range, scenes: int = SCENES) -> Path:
    """FOLDER/scene0/0.jpg …"""
    for number in range(scenes):
        (folder / f"scene{number}").mkdir(parents=True, exist_ok=True)
        for view in views:
            path = folder / f"scene{number}" / f"{view}.jpg"
            cv2.imwrite(str(path), photograph(number, view)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def write_statistics(path: Path) -> Path:
    """SIFT statistics of the scenes."""
    grey = [cv2.cvtColor(photograph(number, 9), cv2.COLOR_RGB2GRAY) for number in range(SCENES)]
    histograms = np.concatenate([detect(image, DESCRIPTORS).histogram for image in grey])
    SiftStatistics.learn(histograms, 4).save(path)
    return path


def extract(pictures: Path, out: Path, statistics: Path) -> Path:
    """What `python -m ames_jax.extract` writes of these pictures."""
    flags = [f"--images={pictures}", "--backbone=sift", f"--statistics={statistics}", f"--descriptors={DESCRIPTORS}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction.cache, "start", lambda: None)
        assert extraction.main([*flags, f"--out={out}"]) == 0
    return out


def write_model(
    folder: Path, statistics: Path, /, seed: int = 0, config: Config | None = None, **facts: object
) -> Path:
    """An untrained binary model (by default an AMES of 32 bits) that says it was trained with these statistics."""
    config = config or AMESConfig(descriptor_width=128, bits=32, model_width=16, layers=2, feed_forward=16)
    known = {"backbone": "sift", "statistics": SiftStatistics.load(statistics).fingerprint(), "lam": 0.6, "gamma": 0.3}
    return save_model(new_model(config, nnx.Rngs(seed)), folder, {**known, **facts})
