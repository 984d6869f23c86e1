"""Training the detector: it learns, a killed run ends where an unbroken one does, and extraction reads what it writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from conftest import GOLDEN
from ml_collections import ConfigDict

from ames_jax.extraction.detector import detector_of
from ames_jax.extraction.network_weights import read_weights
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.errors import UserError
from ames_jax.training import detector
from ames_jax.training.detector import split_images, square

CONFIG = Path(__file__).parents[2] / "configs" / "detector.py"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """Two classes, red and blue noise, and a tiny CVNet."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for label, channel in (("red", 2), ("blue", 0)):
        (folder / label).mkdir()
        for i in range(10):
            picture = rng.integers(0, 60, (40, 48, 3))
            picture[..., channel] += 150
            cv2.imwrite(str(folder / label / f"{i}.png"), picture.astype(np.uint8))
    with np.load(GOLDEN / "resnet_tiny.npz") as file:
        weights = {name.removeprefix("param/"): file[name] for name in file if name.startswith("param/")}
    write_checkpoint(folder.parent / "resnet.pyth", weights)
    config = load_config(CONFIG)
    config.update(
        images=str(folder), backbone="cvnet", weights=str(folder.parent / "resnet.pyth"), side=32, batch=8,
        validation=0.2, validate_every=100, workers=2,
    )  # fmt: skip
    config.optimizer.update(epochs=20.0, learning_rate=0.02)
    config.checkpoint.every, config.log_every = 30, 10
    return config


def test_it_learns_and_a_killed_run_ends_where_an_unbroken_one_does(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    path = detector.train_detector(config, tmp_path / "straight")
    assert "step 40/40: validation accuracy 1.000" in "".join(capfd.readouterr())
    whole = read_weights(path)
    detector_of(whole)

    real = detector.DetectorTask.batches

    def killed(task: detector.DetectorTask, first: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        yield from itertools.islice(real(task, first), 34)
        raise KeyboardInterrupt

    config = config.copy_and_resolve_references()
    config.log_every = 5
    with monkeypatch.context() as patch:
        patch.setattr(detector.DetectorTask, "batches", killed)
        with pytest.raises(KeyboardInterrupt):
            detector.train_detector(config, tmp_path / "broken")
    again = read_weights(detector.train_detector(config, tmp_path / "broken"))
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array)


def test_every_class_is_in_both_parts_and_crops_are_squares(config: ConfigDict) -> None:
    train, validation = split_images(config)
    assert (len(train), len(validation), train.classes) == (16, 4, 2)
    assert not set(train.paths) & set(validation.paths)
    assert sorted(validation.labels.tolist()) == [0, 0, 1, 1]
    image = np.zeros((40, 90, 3), np.uint8)
    image[:, 25:65] = 255
    assert (square(image, 20, (0.5, 1.0), None) == 255).all()
    assert square(image, 24, (0.1, 1.0), np.random.default_rng(0)).shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", "", "--config.images=DIR|LIST is needed"),
        ("backbone", "sift", "trained for dinov2 or cvnet"),
        ("batch", 20, "batch 20 is not divisible by the 8 devices"),
        ("batch", 64, "there are only 16 training images"),
        ("validation", 0.0, "expected a share between 0 and 1"),
        ("weights", "", "cvnet needs --weights"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    config: ConfigDict, tmp_path: Path, key: str, value: object, message: str
) -> None:
    config = config.copy_and_resolve_references()
    config[key] = value
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        detector.train_detector(config, tmp_path)
