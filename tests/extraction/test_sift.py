"""SIFT extraction: order, normalisation, edge cases, statistics, VLAD."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.keypoints import detect
from ames_jax.extraction.sift import SiftStatistics, describe, global_descriptor, local_descriptors
from ames_jax.extraction.vlad import learn_axes, learn_centres, vlad
from ames_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Shapes of many sizes: uint8 [120, 160]."""
    rng = np.random.default_rng(0)
    drawn = np.full((120, 160), 128, np.uint8)
    for _ in range(60):
        x, y, radius = (int(v) for v in rng.integers(2, 118, 3))
        cv2.circle(drawn, (x, y), 2 + radius // 12, int(rng.integers(0, 255)), -1)
    return drawn


@pytest.fixture(scope="module")
def statistics(image: np.ndarray) -> SiftStatistics:
    return SiftStatistics.learn(detect(image, 200).histogram, centres=4)


def test_local_descriptors_are_sorted_normalised_and_in_range(image: np.ndarray, statistics: SiftStatistics) -> None:
    found = local_descriptors(image, 50, statistics)
    assert found.features.shape == (50, 128)
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-5)
    assert (np.diff(found.weight) <= 0).all()
    assert found.weight[0] > found.weight[-1] > 0
    assert ((found.xy >= 0) & (found.xy <= 1)).all()
    assert (found.scale > 0).all()


def test_fewer_asked_are_the_strongest(image: np.ndarray, statistics: SiftStatistics) -> None:
    many, few = local_descriptors(image, 60, statistics), local_descriptors(image, 15, statistics)
    np.testing.assert_array_equal(few.weight, many.weight[:15])
    np.testing.assert_array_equal(few.features, many.features[:15])


def test_positions_follow_the_image(statistics: SiftStatistics) -> None:
    blob = np.zeros((100, 200), np.uint8)
    cv2.circle(blob, (150, 25), 6, 255, -1)
    strongest = local_descriptors(cv2.GaussianBlur(blob, (0, 0), 1), 1, statistics)
    np.testing.assert_allclose(strongest.xy[0], [150.5 / 200, 25.5 / 100], atol=0.01)


@pytest.mark.parametrize("shape", [(64, 64), (1, 40), (40, 1)])
def test_image_without_keypoints_gives_no_descriptors(shape: tuple[int, int], statistics: SiftStatistics) -> None:
    found = local_descriptors(np.full(shape, 77, np.uint8), 20, statistics)
    assert found.features.shape == (0, 128)
    assert found.xy.shape == (0, 2)
    np.testing.assert_array_equal(global_descriptor(found, statistics), np.zeros(4 * 128, np.float32))


def test_colour_image_is_refused() -> None:
    with pytest.raises(ValueError, match="grey image"):
        detect(np.zeros((20, 20, 3), np.uint8), 5)


def test_descriptors_are_centred_root_sift() -> None:
    histogram = np.zeros((1, 128), np.uint8)
    histogram[0, :2] = 3, 9
    mean = np.full(128, 0.1, np.float32)
    expected = np.full(128, -0.1)
    expected[:2] += np.sqrt([0.25, 0.75])
    found = describe(histogram, SiftStatistics(mean, np.zeros((1, 128), np.float32)))
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize("axes", [False, True])
def test_statistics_survive_a_round_trip_and_name_a_damaged_file(image: np.ndarray, axes: bool, tmp_path) -> None:
    path = tmp_path / "statistics.npz"
    statistics = SiftStatistics.learn(detect(image, 400).histogram, centres=2, spread=0.1, axes=axes)
    statistics.save(path)
    loaded = SiftStatistics.load(path)
    assert loaded.fingerprint() == statistics.fingerprint()
    assert (loaded.axes is not None, loaded.spread) == (axes, 0.1)
    np.testing.assert_array_equal(loaded.mean, statistics.mean)
    np.testing.assert_array_equal(loaded.centres, statistics.centres)
    replace(statistics, axes=np.zeros((1, 128, 128), np.float32)).save(path)
    with pytest.raises(UserError, match=r"axes \[1, 128, 128\], expected \[2, 128, 128\]"):
        SiftStatistics.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"statistics\.npz"):
        SiftStatistics.load(path)


def test_statistics_need_enough_descriptors() -> None:
    with pytest.raises(UserError, match="found 3"):
        SiftStatistics.learn(np.ones((3, 128), np.uint8), centres=4)


def test_vlad_by_hand() -> None:
    centres = np.array([[0, 0], [10, 0]], np.float32)
    features = np.array([[1, 0], [0, 1], [12, 0], [99, 99]], np.float32)
    valid = np.array([True, True, True, False])
    # residuals (1, 1) and (2, 0); normalised per centre; square root; the whole normalised to 1
    expected = np.array([2**-0.25, 2**-0.25, 1, 0])
    np.testing.assert_allclose(vlad(features, valid, centres), expected / np.linalg.norm(expected), atol=1e-6)


def test_vlad_in_local_axes_by_hand() -> None:
    centres = np.array([[0, 0], [10, 0]], np.float32)
    features = np.array([[3, 4], [0, 2], [12, 0], [99, 99]], np.float32)
    valid = np.array([True, True, True, False])
    swapped = np.array([[0, 1], [1, 0]], np.float32)
    axes = np.stack([swapped, np.eye(2, dtype=np.float32)])
    # residuals of length 1: (0.6, 0.8) + (0, 1), and (1, 0); the first centre's axes swapped; square root; length 1
    expected = np.sqrt([1.8, 0.6, 1, 0])
    found = vlad(np.stack([features, features]), np.stack([valid, valid]), centres, axes)
    np.testing.assert_allclose(found[1], expected / np.linalg.norm(expected), atol=1e-6)


def test_axes_are_the_principal_ones_of_each_centre(rng: np.random.Generator) -> None:
    centres = np.array([[0, 0, 0], [50, 0, 0], [0, 90, 0]], np.float32)
    spread = rng.standard_normal((400, 3)) * [0.1, 1, 3] + [0.01, 0, 0]
    features = np.concatenate([spread, spread[:, [2, 0, 1]] + centres[1]]).astype(np.float32)
    axes = np.abs(learn_axes(features, centres))
    np.testing.assert_allclose(axes[0], np.eye(3), atol=0.2)
    np.testing.assert_allclose(axes[1], np.eye(3)[:, [1, 2, 0]], atol=0.2)
    np.testing.assert_array_equal(axes[2], np.eye(3))  # a centre that too few descriptors belong to


@pytest.mark.parametrize("axes", [False, True])
def test_global_descriptor_ignores_padding(image: np.ndarray, axes: bool) -> None:
    statistics = SiftStatistics.learn(detect(image, 400).histogram, centres=2, axes=axes)
    found = local_descriptors(image, 30, statistics)
    padded = DescriptorSet(found.features).pad(50)
    np.testing.assert_allclose(global_descriptor(padded, statistics), global_descriptor(found, statistics), atol=1e-6)


def test_centres_find_separate_groups() -> None:
    rng = np.random.default_rng(1)
    groups = np.array([[0, 0], [20, 0], [0, 20]], np.float32)
    points = (groups[:, None] + rng.normal(0, 0.1, (3, 50, 2))).reshape(-1, 2)
    centres = learn_centres(points, 3, seed=3)
    np.testing.assert_allclose(centres[np.lexsort(centres.T)], groups[np.lexsort(groups.T)], atol=0.1)


def test_keypoints_lie_apart_where_asked(image: np.ndarray) -> None:
    apart, all_of_them = detect(image, 30, spread=0.05), detect(image, 30)
    distance = np.linalg.norm((apart.xy[:, None] - apart.xy) * [160, 120], axis=-1) + 1e9 * np.eye(len(apart))
    assert distance.min() >= 8 - 1e-3
    assert apart.weight[0] == all_of_them.weight[0]
    assert (np.diff(apart.weight) <= 0).all()


def test_statistics_that_are_no_npz_file_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_text("text")
    with pytest.raises(UserError, match=r"s\.npz: no SIFT statistics .*: it is no \.npz file$"):
        SiftStatistics.load(tmp_path / "s.npz")


@pytest.mark.parametrize(
    "changed",
    [
        {"mean": np.full(128, np.nan, np.float32)},
        {"mean": np.zeros((1, 128), np.float32)},
        {"mean": np.array(["a"] * 128)},
        {"centres": np.full((2, 128), np.inf, np.float32)},
        {"centres": np.zeros((2, 64), np.float32)},
        {"centres": np.zeros(128, np.float32)},
        {"centres": np.zeros((0, 128), np.float32)},
        {"centres": np.zeros((2, 128), np.int32)},
        {"spread": np.nan},
        {"axes": np.full((2, 128, 128), np.nan, np.float32)},
    ],
)
def test_statistics_of_other_values_are_refused(tmp_path: Path, changed: dict) -> None:
    whole = {"mean": np.zeros(128, np.float32), "centres": np.ones((2, 128), np.float32), "spread": 0.0}
    np.savez(tmp_path / "s.npz", **(whole | changed))
    with pytest.raises(UserError, match=r"s\.npz: no SIFT statistics .*expected") as caught:
        SiftStatistics.load(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)
