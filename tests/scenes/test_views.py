"""A folder of photographs becomes a data set to train on: its splits, its views, a kill in the middle, and bad folders."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from ames_jax.benchmarks.extraction_speed import dead_leaves
from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import open_split
from ames_jax.extraction.backbones import open_backbone
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError
from ames_jax.scenes import views, warping
from ames_jax.scenes.photographs import ViewSettings
from ames_jax.scenes.settings import LANDMARKS
from ames_jax.scenes.warping import warp

SETTINGS = ViewSettings(count=2, queries=1)
PHOTOS, SIDE = 8, 96


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs without labels, and a file that is none."""
    place = tmp_path_factory.mktemp("photographs")
    for number in range(PHOTOS):
        cv2.imwrite(str(place / f"{number}.png"), dead_leaves(number, SIDE, 80))
    (place / "broken.jpg").write_bytes(b"no picture")
    return place


@pytest.fixture(scope="module")
def backbone():
    return open_backbone("sift", descriptors=24, max_side=SIDE)


@pytest.fixture(scope="module")
def data_set(folder: Path, backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMES_JAX_HOME", str(tmp_path_factory.mktemp("home")))
        return views.build_views([folder], backbone, SETTINGS, processes=1)


def records(root: Path, split: str) -> list[tuple]:
    return [(r.id, r.label, r.descriptors.features.tobytes()) for r in open_split(root, split)]


def test_a_view_is_a_function_of_its_arguments() -> None:
    photo, other = dead_leaves(0, SIDE, 80), dead_leaves(1, SIDE, 80)
    same, again, another = (warp(photo, lambda _: other, np.random.default_rng(seed), SIDE) for seed in (3, 3, 4))
    assert same == again
    assert same != another
    view = cv2.imdecode(np.frombuffer(same, np.uint8), cv2.IMREAD_COLOR)
    assert max(view.shape[:2]) == SIDE


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 300, 3), (300, 2, 3)])
def test_any_shape_can_be_warped(shape: tuple[int, ...]) -> None:
    photo = np.full(shape, 200, np.uint8)
    for seed in range(8):
        assert warp(photo, lambda _: photo, np.random.default_rng(seed), 40, 2.0)


def test_every_photo_is_an_instance_in_one_of_three_stages(data_set: Path) -> None:
    stages = json.loads((data_set / "photographs.json").read_text())["stages"]
    assert sorted(stages) == ["test", *["train"] * (PHOTOS - 2), "validation"]
    train = open_split(data_set, "train")
    assert sorted(np.unique(train.labels(), return_counts=True)[1].tolist()) == [3] * (PHOTOS - 2)
    assert len(open_split(data_set, "gallery")) == PHOTOS
    held = set(open_split(data_set, "validation_query").labels()) | set(open_split(data_set, "test_query").labels())
    assert not held & set(train.labels())
    lists = open_neighbours(data_set / "neighbours" / "train.train")
    assert lists.indices.shape == (18, 17)


def test_views_ask_for_their_photo(data_set: Path) -> None:
    for stage in ("validation", "test"):
        found = RetrievalSet.load(data_set, stage)
        assert [found.right_rows(row) for row in range(len(found.ranks))] == [
            {stages.index(stage)} for stages in [json.loads((data_set / "photographs.json").read_text())["stages"]]
        ]
        assert (data_set / "images" / f"{found.queries.ids()[0]}.jpg").is_file()
    assert not (data_set / "images" / "train").exists()
    assert cv2.imread(str(data_set / "views.jpg")).shape == (6 * 128, 3 * 144, 3)  # 6 photos and 2 views of each


def test_a_set_that_is_there_is_not_made_again(data_set: Path, folder: Path, backbone, monkeypatch) -> None:
    monkeypatch.setattr(views, "_make", None)
    assert views.build_views([folder], backbone, SETTINGS, data_set.parent) == data_set
    (data_set / "global" / "train.npy").rename(data_set / "global" / "away.npy")
    with pytest.raises(UserError, match=r"train.npy is missing; make it again with --config.data.rebuild=true"):
        views.build_views([folder], backbone, SETTINGS, data_set.parent)
    (data_set / "global" / "away.npy").rename(data_set / "global" / "train.npy")


def test_a_killed_run_goes_on_to_the_same_set(data_set: Path, folder: Path, backbone, tmp_path, monkeypatch) -> None:
    warped = []

    def killed(*arguments: object) -> bytes:
        warped.append(arguments)
        if len(warped) == 8:
            raise KeyboardInterrupt
        return warp(*arguments)

    monkeypatch.setattr(warping, "warp", killed)
    with pytest.raises(KeyboardInterrupt):
        views.build_views([folder], backbone, SETTINGS, tmp_path, processes=1)
    real = views._write_neighbours
    monkeypatch.setattr(views, "_write_neighbours", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        views.build_views([folder], backbone, SETTINGS, tmp_path, processes=1)
    assert len(warped) == 15  # 14 views, the one of the kill twice
    monkeypatch.setattr(views, "_write_neighbours", real)
    again = views.build_views([folder], backbone, SETTINGS, tmp_path, processes=2)
    assert len(warped) == 15
    assert again.name == data_set.name
    for split in ("train", "validation_query", "gallery"):
        assert records(again, split) == records(data_set, split)
        assert (again / "global" / f"{split}.npy").read_bytes() == (data_set / "global" / f"{split}.npy").read_bytes()


def test_photos_of_one_scene_ask_for_each_other(folder: Path, backbone, tmp_path: Path) -> None:
    for number in range(PHOTOS):
        place = tmp_path / "scenes" / str(number // 2)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{number}.png", place)
    shutil.copy(folder / "0.png", tmp_path / "scenes" / "3" / "copy.png")  # the same photo twice counts once
    root = views.build_views([tmp_path / "scenes"], backbone, SETTINGS, tmp_path, processes=1)
    assert len(open_split(root, "gallery")) == PHOTOS
    truth = json.loads((root / "ground_truth" / "validation.json").read_text())["queries"]
    (first,), (second,) = (query["ok"] for query in truth)
    assert [query["junk"] for query in truth] == [[second], [first]]
    for number in (6, 7):
        shutil.move(tmp_path / "scenes" / "3" / f"{number}.png", tmp_path / "scenes" / "0")
    (tmp_path / "scenes" / "3" / "copy.png").unlink()
    with pytest.raises(UserError, match="8 photographs of 3 scenes"):
        views.build_views([tmp_path / "scenes"], backbone, SETTINGS, tmp_path, processes=1)


def test_rendered_scenes_are_mixed_into_training(folder: Path, backbone, tmp_path: Path, monkeypatch) -> None:
    few = dataclasses.replace(LANDMARKS, neighbours=2, street_items=6)  # a small world
    monkeypatch.setattr(views, "TRANSFER", few)
    settings = dataclasses.replace(SETTINGS, rendered=2)
    train = open_split(views.build_views([folder], backbone, settings, tmp_path, processes=1), "train")
    names = [name for name in train.ids() if "rendered" in name]
    assert names == [f"train/rendered{scene:05d}_{view}" for scene in range(2) for view in range(3)]
    assert train.labels()[-6:].tolist() == [9, 9, 9, 10, 10, 10]  # of 8 photos and a broken one
    assert not set(train.labels()[:-6]) & {9, 10}


def test_labels_with_a_photo_each_are_no_labels(folder: Path, backbone, tmp_path: Path, data_set: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{folder / f'{number}.png'},{number}\n" for number in range(PHOTOS)))
    root = views.build_views([listed], backbone, SETTINGS, tmp_path, processes=1)
    assert [r[1:] for r in records(root, "train")] == [r[1:] for r in records(data_set, "train")]


def make(folder: Path, names: list[str], content: bytes | None = None) -> list[Path]:
    folder.mkdir()
    for number, name in enumerate(names):
        picture = cv2.imencode(".png", dead_leaves(number, 20, 20))[1].tobytes()
        (folder / name).write_bytes(picture if content is None else content)
    return [folder]


@pytest.mark.parametrize(
    ("names", "content", "settings", "message"),
    [
        (["1.png"], None, {}, r"found 1 photographs; a re-ranker needs 8"),
        ([f"{i}.jpg" for i in range(9)], b"none", {}, r"found 0 photographs and 1 that cannot be read, the first: .*0.jpg"),
        ([], None, {}, "no image in this folder"),
        (None, None, {}, r"--config.photos=.*: no such folder or list"),
        (["1.png"], None, {"count": 0}, "--config.views.count=0: expected 1 or more"),
        (["1.png"], None, {"rendered": -1}, "expected 0 or more"),
        (["1.png"], None, {"strength": 3.0}, "expected 0 to 2"),
        (["1.png"], None, {"test": 0.0}, "expected shares above 0"),
    ],
)  # fmt: skip
def test_bad_folders_are_told_in_one_line(tmp_path: Path, backbone, names, content, settings, message) -> None:
    places = [tmp_path / "nowhere"] if names is None else make(tmp_path / "photos", names, content)
    with pytest.raises(UserError, match=message) as caught:
        views.build_views(places, backbone, ViewSettings(**settings), tmp_path / "sets", processes=1)
    assert "\n" not in str(caught.value)
