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
from flax import nnx

from ames_jax import AMES, AMESConfig
from ames_jax.benchmarks import calibrate, photos
from ames_jax.data.shards import open_split
from ames_jax.extraction.sift import SiftStatistics, global_descriptor, local_descriptors
from ames_jax.model.weights import facts_of, save_model
from ames_jax.runtime.errors import UserError
from ames_jax.scenes import TRANSFER, build
from ames_jax.scenes.rendering import Task, run_task, world
from ames_jax.scenes.transfer_world import dead_leaves, draw_texture, fractal_noise

TINY = replace(
    TRANSFER,
    train_landmarks=3,
    train_views=2,
    validation_landmarks=2,
    test_landmarks=2,
    query_views=1,
    gallery_views=2,
    descriptors=40,
    vlad_centres=2,
    neighbours=2,
    street_items=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(TINY, tmp_path_factory.mktemp("home"), processes=1, progress=False)


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


def test_a_calibrated_model_searches_photos_among_distractors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rendered pictures stand for photographs: the test splits as scenes."""
    for path in (folder / "images").glob("test_*/*.jpg"):
        scene = tmp_path / "scenes" / path.stem.split("_")[0]
        scene.mkdir(parents=True, exist_ok=True)
        (scene / path.name).write_bytes(path.read_bytes())
    config = AMESConfig(descriptor_width=128, model_width=32, heads=2, layers=2, feed_forward=32, bits=64)
    save_model(AMES(config, nnx.Rngs(0)), tmp_path / "student")
    model = tmp_path / "calibrated"
    assert calibrate.main([f"--run={tmp_path / 'student'}", f"--out={model}", f"--data={folder}", "--shortlist=3"]) == 0
    assert facts_of(model)["statistics"] == SiftStatistics.load(model / "sift_statistics.npz").fingerprint()
    command = [
        f"--photos={tmp_path / 'scenes'}", f"--model={model}", f"--validation={folder}", "--shortlist=3",
        f"--distractors={folder / 'images' / 'validation_gallery'}", f"--json={tmp_path / 'table.json'}",
    ]  # fmt: skip
    assert photos.main(command) == 0
    chosen = json.loads((tmp_path / "table.json").read_text())["settings"]
    assert photos.main([*command, "--choose-on=photos"]) == 0
    assert json.loads((tmp_path / "table.json").read_text())["settings"] != chosen
    others = f"--distractors={folder / 'images' / 'validation_gallery'}"
    again = [f"--run={model}", f"--out={model}", f"--data={folder}", f"--photos={tmp_path / 'scenes'}", others]
    assert calibrate.main(again) == 0
    with pytest.raises(UserError, match="--distractors"):
        photos.main([*command, f"--distractors={tmp_path / 'none'}"])
    assert "pictures of 2 scenes, 4 distractors" in capsys.readouterr().out
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"global only", "student", "hand-made, floats", "hand-made, bits"}
    replace(SiftStatistics.load(model / "sift_statistics.npz"), spread=0.5).save(model / "sift_statistics.npz")
    with pytest.raises(UserError, match="trained with other SIFT statistics"):
        calibrate.main(again)
    with pytest.raises(UserError, match="--photos"):
        photos.read_scenes(folder / "images" / "test_query")
