"""The embedded data set as a whole: built once, atomically, reused, rebuilt, checked, like any other set on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import FEW

from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import open_split
from ames_jax.extraction.keypoints import Keypoints
from ames_jax.extraction.sift import SiftStatistics, global_descriptor, local_descriptors
from ames_jax.runtime.errors import UserError
from ames_jax.scenes import LANDMARKS, TRANSFER, Settings, build, building
from ames_jax.scenes.writing import describe_globally, learn_statistics

TINY = Settings(train_landmarks=4, train_views=2, validation_landmarks=2, test_landmarks=3, **FEW)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return build(TINY, root, processes=2)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_it_is_a_data_set_like_any_other(folder: Path) -> None:
    source = open_split(folder, "test_gallery")
    assert len(source) == 6
    record = source[3]
    features = np.asarray(record.descriptors.features, np.float32)
    assert features.shape == (40, 128)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=2e-3)
    assert (np.diff(record.descriptors.weight) <= 0).all()
    assert json.loads((folder / "about.json").read_text())["name"] == "embedded landmarks (rendered)"
    assert (folder / "images" / f"{source.ids()[3]}.jpg").is_file()
    assert not (folder / "images" / "train").exists()


def test_splits_share_no_landmark(folder: Path) -> None:
    stages = {
        stage: set(np.concatenate([open_split(folder, name).labels() for name in names]).tolist())
        for stage, names in {
            "train": ["train"],
            "validation": ["validation_query", "validation_gallery"],
            "test": ["test_query", "test_gallery"],
        }.items()
    }
    assert [len(labels) for labels in stages.values()] == [4, 2, 3]
    assert len(set.union(*stages.values())) == 9


def test_queries_are_not_in_their_gallery() -> None:
    for stage in ("validation", "test"):
        parts = [part for part in building.splits(LANDMARKS) if part.stage == stage]
        photos = [(number, part.first + j) for part in parts for number in set(part.numbers) for j in range(part.views)]
        assert len(photos) == len(set(photos))


def test_ground_truth_names_the_views_of_the_same_landmark(folder: Path) -> None:
    truth = json.loads((folder / "ground_truth" / "test.json").read_text())
    assert (truth["query"], truth["database"]) == ("test_query", "test_gallery")
    assert [entry["ok"] for entry in truth["queries"]] == [[0, 1], [2, 3], [4, 5]]


def test_neighbours_are_those_of_the_global_descriptors(folder: Path) -> None:
    ranked = open_neighbours(folder / "neighbours" / "test_query.test_gallery")
    queries, gallery = (np.load(folder / "global" / f"test_{part}.npy") for part in ("query", "gallery"))
    np.testing.assert_allclose(np.linalg.norm(gallery, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(ranked.indices, np.argsort(-(queries @ gallery.T), axis=1, kind="stable"))
    train = open_neighbours(folder / "neighbours" / "train.train")
    assert train.indices.shape == (8, 7)
    assert all(row not in train.indices[row] for row in range(8))


def test_extracting_from_a_stored_photo_gives_the_stored_descriptors(folder: Path) -> None:
    source, statistics = open_split(folder, "test_query"), SiftStatistics.load(folder / "sift_statistics.npz")
    photo = cv2.imread(str(folder / "images" / f"{source.ids()[1]}.jpg"), cv2.IMREAD_GRAYSCALE)
    found, stored = local_descriptors(photo, 40, statistics), source[1].descriptors
    np.testing.assert_allclose(found.features, stored.features, atol=1e-3)
    np.testing.assert_allclose(found.xy, stored.xy, atol=1e-6)
    np.testing.assert_allclose(
        global_descriptor(found, statistics), np.load(folder / "global" / "test_query.npy")[1], atol=1e-5
    )


def test_statistics_come_from_training_photos_alone() -> None:
    rng = np.random.default_rng(0)

    def photos(*counts: int) -> list[Keypoints]:
        histograms = [rng.integers(0, 255, (count, 128)).astype(np.uint8) for count in counts]
        return [Keypoints(h, np.zeros((len(h), 2)), np.zeros(len(h)), np.zeros(len(h))) for h in histograms]

    train, test = photos(40, 9, 40), photos(40, 40)
    learned = learn_statistics(train, TINY)
    described = describe_globally(test, learned, 40)
    np.testing.assert_array_equal(learn_statistics(train, TINY).centres, learned.centres)
    assert np.abs(learn_statistics(test, TINY).mean - learned.mean).max() > 1e-3
    # Padding behind the keypoints of a photo changes nothing.
    np.testing.assert_allclose(describe_globally(test, learned, 50), described, atol=1e-6)


def test_another_run_with_other_processes_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = build(TINY, tmp_path, processes=1)
    assert again.name == folder.name
    first, second = contents(folder), contents(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_built_set_is_reused_and_rebuilt_on_demand(folder: Path, root: Path) -> None:
    about = folder / "about.json"
    before = about.stat().st_mtime_ns
    assert build(TINY, root) == folder
    assert about.stat().st_mtime_ns == before
    assert build(TINY, root, processes=1, rebuild=True) == folder
    assert about.stat().st_mtime_ns != before
    assert [path.name for path in root.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["global/train.npy", "sift_statistics.npz", "neighbours/train.train/indices.npy"])
def test_a_damaged_file_is_named_with_the_way_out(folder: Path, root: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{path} is damaged.*--config\.data\.rebuild=true"):
            build(TINY, root)
        path.unlink()
        with pytest.raises(UserError, match=rf"{path} is missing"):
            build(TINY, root)
    finally:
        path.write_bytes(whole)


def test_a_damaged_manifest_is_named(folder: Path, root: Path) -> None:
    manifest = folder / building.MANIFEST
    whole = manifest.read_text()
    try:
        manifest.write_text(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=rf"{manifest}: cannot be read.*rebuild"):
            build(TINY, root)
    finally:
        manifest.write_text(whole)


def test_every_setting_and_the_seed_have_their_own_folder() -> None:
    keys = {TINY.key(), replace(TINY, seed=1).key(), replace(TINY, clutter=0.5).key(), LANDMARKS.key()}
    assert len(keys) == 4
    assert replace(TINY).key() == TINY.key()


def test_sets_that_are_in_caches_keep_their_folders() -> None:
    assert (LANDMARKS.key(), TRANSFER.key()) == ("2f02dfb60d", "34f965d6f1")
    assert replace(TRANSFER, seed=3, snow=0.5).key() == "e68bc9a2a7"


@pytest.mark.parametrize("wrong", [{"train_landmarks": 0}, {"train_views": 1}, {"seed": -1}, {"night": 1.5}])
def test_settings_that_no_set_can_have_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Settings(**wrong)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UserError, match=r"'landmark': expected landmarks or transfer; did you mean landmarks\?"):
        build("landmark")
