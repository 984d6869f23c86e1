"""The renderer: the same photo for the same seed in any process, variety, and the command line."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ames_jax import prepare, scenes
from ames_jax.extraction.keypoints import Keypoints
from ames_jax.runtime.errors import UserError
from ames_jax.scenes import PRESETS, Settings
from ames_jax.scenes.camera import Camera
from ames_jax.scenes.drawing import Sprite
from ames_jax.scenes.rendering import Task, run_task, world, write_contact_sheet

FEW = Settings(neighbours=2, street_items=6, descriptors=32)


def render_photo(settings: Settings, landmark: int, view: int) -> bytes:
    scene = world(settings)
    return scene.photograph(landmark, view, scene.landmark(landmark))


def decoded(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def test_a_photo_is_a_pure_function_of_its_numbers() -> None:
    first = render_photo(FEW, 3, 1)
    assert decoded(first).shape == (240, 320, 3)
    render_photo(FEW, 5, 0)  # what was rendered in between does not matter
    assert render_photo(FEW, 3, 1) == first
    others = [render_photo(FEW, 3, 2), render_photo(FEW, 4, 1), render_photo(replace(FEW, seed=1), 3, 1)]
    assert len({first, *others}) == 4


def test_another_process_renders_and_describes_the_same() -> None:
    task = Task(replace(FEW, night=0.5), landmark=7, first=0, views=3)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        theirs, ours = pool.submit(run_task, task).result(), run_task(task)
    for there, here in zip(theirs, ours, strict=True):
        for name in ("histogram", "xy", "scale", "weight"):
            np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert all(map(len, ours))


def run_without_vector_instructions(task: Task) -> list[Keypoints]:
    cv2.setUseOptimized(False)
    cv2.ipp.setUseIPP(False)
    return run_task(task)


def test_another_arithmetic_stays_within_the_documented_tolerance() -> None:
    task = Task(FEW, landmark=11, first=0, views=6)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        theirs, ours = pool.submit(run_without_vector_instructions, task).result(), run_task(task)
    again = []
    for here, there in zip(ours, theirs, strict=True):
        offset = np.abs(here.xy[:, None] - there.xy) * [320, 240]
        first, second = (np.sqrt(found.histogram / 1.0) for found in (here, there))
        cosine = (first @ second.T) / (np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1))
        again.append(np.where(offset.max(-1) < 0.5, cosine, 0).max(1) > 0.95)
    assert np.mean(again) >= 0.97


def test_photos_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    paths = (tmp_path / "a.jpg", tmp_path / "b.jpg")
    run_task(Task(FEW, 2, 4, 2, paths))
    assert [path.read_bytes() for path in paths] == [render_photo(FEW, 2, 4), render_photo(FEW, 2, 5)]


def test_camera_and_homography_agree() -> None:
    camera = Camera.random(np.random.default_rng(0), difficulty=0.7)
    corner = camera.homography(depth=40, x=100, y=50, scale=2) @ [30, 20, 1]
    np.testing.assert_allclose(corner[:2] / corner[2], camera.project(np.array([[160.0, 90, 40]]))[0], atol=1e-6)


def test_a_nearer_part_moves_against_the_wall() -> None:
    rng = np.random.default_rng(1)
    cameras = [Camera.random(rng, difficulty=1) for _ in range(2)]
    shifts = [c.project(np.array([[240.0, 200, 60]])) - c.project(np.array([[240.0, 200, 0]])) for c in cameras]
    assert np.linalg.norm(shifts[0] - shifts[1]) > 1


def test_a_sprite_covers_where_it_is_opaque() -> None:
    photo = np.full((20, 30, 3), 50, np.uint8)
    alpha = np.full((8, 10), 255, np.uint8)
    alpha[:, 5:] = 0
    sprite = Sprite(np.full((8, 10, 3), 200, np.uint8), alpha)
    sprite.paint(photo, np.array([[1, 0, 12], [0, 1, 6], [0, 0, 1.0]]))
    assert (photo[7:13, 13:16] == 200).all()
    assert (photo[:, 18:] == 50).all()
    assert (photo[:6] == 50).all()
    before = photo.copy()
    sprite.paint(photo, np.array([[1, 0, 500], [0, 1, 6], [0, 0, 1.0]]))  # beside the photo
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize("preset", ["landmarks", "transfer"])
def test_contact_sheet(tmp_path: Path, preset: str) -> None:
    target = tmp_path / "sheet.png"
    write_contact_sheet(target, replace(PRESETS[preset], neighbours=2, street_items=6), landmarks=2, views=3)
    sheet = cv2.imread(str(target))
    assert sheet.shape == (288, 576, 3)
    assert sheet.std() > 20


def test_a_contact_sheet_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for name in ("sheet", "none/sheet.png"):  # no picture's suffix; no folder
        with pytest.raises(UserError, match=f"{tmp_path / name}: can"):
            write_contact_sheet(tmp_path / name, FEW, landmarks=1, views=1)


def test_the_command_names_the_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr(scenes, "build", lambda settings, root, **options: asked.append((settings, options)) or "here")
    assert prepare.main(["scenes", "--preset=transfer", "--seed=3", "--processes=2", "--rebuild"]) == 0
    assert asked == [(replace(PRESETS["transfer"], seed=3), {"processes": 2, "rebuild": True})]
    assert capsys.readouterr().out == "here\n"
