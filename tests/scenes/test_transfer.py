"""The transfer set: scenes by seed, a set like any other, and the photo benchmark on top of it."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import FEW

from ames_jax.data.shards import open_split
from ames_jax.extraction.sift import SiftStatistics, global_descriptor, local_descriptors
from ames_jax.scenes import TRANSFER, build
from ames_jax.scenes.rendering import Task, run_task, world
from ames_jax.scenes.transfer_world import dead_leaves, draw_texture, fractal_noise

TINY = replace(TRANSFER, train_landmarks=3, train_views=2, validation_landmarks=2, test_landmarks=2, **FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(TINY, tmp_path_factory.mktemp("home"), processes=1)


def test_it_is_a_data_set_like_any_other(folder: Path) -> None:
    assert folder.name.startswith("transfer-")
    assert json.loads((folder / "about.json").read_text())["name"] == "transfer scenes (rendered)"
    assert open_split(folder, "train")[5].descriptors.features.shape == (40, 128)
    assert SiftStatistics.load(folder / "sift_statistics.npz").spread == TINY.spread > 0


def test_statistics_and_global_descriptor_are_of_all_keypoints_that_extraction_takes(folder: Path) -> None:
    name = "test_query/0000_0"
    photo = cv2.imread(str(folder / "images" / f"{name}.jpg"), cv2.IMREAD_GRAYSCALE)
    statistics = SiftStatistics.load(folder / "sift_statistics.npz")
    found = local_descriptors(photo, TINY.keypoints, statistics)
    stored = open_split(folder, "test_query")[0]
    assert len(found.features) > len(stored.descriptors.features) == TINY.descriptors
    np.testing.assert_allclose(found.features[: TINY.descriptors], stored.descriptors.features, atol=1e-3)
    expected = np.load(folder / "global" / "test_query.npy")[0]
    np.testing.assert_allclose(global_descriptor(found, statistics), expected, atol=1e-5)
    assert json.loads((folder / "about.json").read_text())["global"] == "VLAD, 2 centres, local axes"


def test_another_process_renders_and_describes_the_same() -> None:
    task = Task(TINY, landmark=5, first=0, views=3)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        theirs, ours = pool.submit(run_task, task).result(), run_task(task)
    for there, here in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(there.histogram, here.histogram)
    assert any(map(len, ours))


def test_instances_are_facades_and_textured_scenes_in_photos_of_many_sizes() -> None:
    transfer = world(TINY)
    instances = [transfer.landmark(number) for number in range(6)]
    assert {instance.facade is None for instance in instances} == {True, False}
    scene = next(number for number, instance in enumerate(instances) if instance.facade is None)
    jpegs = [transfer.photograph(scene, view, instances[scene]) for view in range(5)]
    shapes = {cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE).shape for jpeg in jpegs}
    assert len(shapes) > 1
    other = world(replace(TINY, seed=1)).photograph(scene, 0, instances[scene])
    assert other != jpegs[0]


def test_noise_has_the_power_law_it_is_asked_for(rng: np.random.Generator) -> None:
    amplitude = np.abs(np.fft.rfft2(fractal_noise(rng, 256, 256, 1.0)))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    band = (frequency > 0.02) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(amplitude[band]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)
    assert dead_leaves(rng, 60, 80).shape == draw_texture(rng, 60, 80).shape == (60, 80, 3)
