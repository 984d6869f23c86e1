"""Exact search against sorting, on one and on many devices, and the files of its result."""

import jax
import numpy as np
import pytest

from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.neighbour_search import BlockSearch, nearest
from ames_jax.data.neighbours import open_neighbours, save_neighbours, search_to_folder
from ames_jax.runtime.checksums import forget
from ames_jax.runtime.errors import UserError


def vectors(count, width=24, seed=0):
    values = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def by_sorting(queries, database, k, exclude_self=False):
    similarities = queries.astype(np.float64) @ database.T.astype(np.float64)
    if exclude_self:
        np.fill_diagonal(similarities, -np.inf)
    indices = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, indices, axis=1), indices


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("block", [64, 100, 1000])
@pytest.mark.parametrize("devices", [1, None])
def test_equals_sorting(exclude_self, block, devices):
    database = vectors(333)
    found, rows = nearest(
        database, database, 17, exclude_self=exclude_self, block=block, devices=devices and jax.local_devices()[:1]
    )
    expected, expected_rows = by_sorting(database, database, 17, exclude_self)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert rows.dtype == np.int32
    if exclude_self:
        assert not (rows == np.arange(333)[:, None]).any()


def test_queries_of_another_set_and_all_of_a_small_database():
    queries, database = vectors(5, seed=1), vectors(21)
    found, rows = nearest(queries, database, 21, block=8)
    np.testing.assert_array_equal(rows, by_sorting(queries, database, 21)[1])
    assert (np.diff(found, axis=1) <= 0).all()


def test_equal_similarities_keep_the_order_of_the_database():
    database = np.repeat(vectors(4), 10, axis=0)
    _, rows = nearest(database[:1], database, 25, block=16)
    np.testing.assert_array_equal(rows[0, :10], np.arange(10))
    assert all((np.diff(rows[0, start : start + 10]) > 0).all() for start in (0, 10))


def test_reads_a_float16_memory_map(tmp_path):
    database = vectors(100).astype(np.float16)
    np.save(tmp_path / "global.npy", database)
    mapped = np.load(tmp_path / "global.npy", mmap_mode="r")
    np.testing.assert_array_equal(nearest(mapped, mapped, 5)[1], nearest(database, database, 5)[1])


def test_agrees_with_faiss():
    faiss = pytest.importorskip("faiss")
    database = vectors(500)
    index = faiss.IndexFlatIP(24)
    index.add(database)
    expected, expected_rows = index.search(database[:50], 10)
    found, rows = nearest(database[:50], database, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_cannot_be_searched_is_named():
    with pytest.raises(UserError, match="asked for 10 neighbours of each image, but the database has 9"):
        nearest(vectors(10), vectors(10), 10, exclude_self=True)
    with pytest.raises(UserError, match="queries have 24 values, the database 16"):
        nearest(vectors(3), vectors(10, 16), 2)


def test_blocks_are_a_multiple_of_the_devices():
    count = len(jax.local_devices())
    assert BlockSearch(vectors(9), 2, block=count * 5 + 1).block % count == 0


def test_files_come_back(tmp_path):
    found, rows = nearest(vectors(20), vectors(20), 4)
    save_neighbours(tmp_path / "train.train", found, rows, {"exclude_self": False})
    opened = open_neighbours(tmp_path / "train.train")
    np.testing.assert_array_equal(opened.indices, rows)
    np.testing.assert_array_equal(opened.similarities, found)
    assert isinstance(opened.indices, np.memmap)
    assert len(opened) == 20
    assert opened.about == {"exclude_self": False}


def test_row_numbers_past_32_bits_are_kept(tmp_path):
    rows = np.array([[2**31, 1]])
    save_neighbours(tmp_path, np.ones((1, 2), np.float16), rows)
    opened = open_neighbours(tmp_path)
    assert opened.indices.dtype == np.int64
    np.testing.assert_array_equal(opened.indices, rows)
    assert opened.similarities.dtype == np.float16


def test_files_that_do_not_match_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"indices.npy is missing"):
        open_neighbours(tmp_path)
    np.save(tmp_path / "indices.npy", np.zeros((3, 4), np.int32))
    np.save(tmp_path / "similarities.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(UserError, match="do not match"):
        open_neighbours(tmp_path)


def test_descriptors_that_changed_in_the_middle_are_not_taken_for_the_old_ones(tmp_path):
    base = vectors(60)
    np.save(tmp_path / "base.npy", base)
    assert search_to_folder(tmp_path / "lists", base, GlobalDescriptors([tmp_path / "base.npy"]), 5)
    assert search_to_folder(tmp_path / "lists", base, GlobalDescriptors([tmp_path / "base.npy"]), 5)
    base[30] = -base[30]
    np.save(tmp_path / "base.npy", base)
    with pytest.raises(UserError, match="inputs was"):
        search_to_folder(tmp_path / "lists", vectors(60), GlobalDescriptors([tmp_path / "base.npy"]), 5)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_search_killed_at_its_very_end_leaves_nothing(tmp_path, recorded):
    """After the last file of the lists: before its checksum is kept, or before the blocks are gone."""
    folder = tmp_path / "lists"
    search_to_folder(folder, vectors(20), vectors(20), 5)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / ".unfinished" / "host.1").mkdir(parents=True)
    if not recorded:
        forget(folder, "indices.npy", "similarities.npy", "about.json")
    assert search_to_folder(folder, vectors(20), vectors(20), 5)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_global_descriptors_with_nan_are_not_kept(tmp_path):
    for name, strange in (("gallery", []), ("distractors", [2])):
        values = np.eye(4, dtype=np.float32)
        values[strange, 1] = np.nan
        np.save(tmp_path / f"{name}.npy", values)
    files = [tmp_path / "gallery.npy", tmp_path / "distractors.npy"]
    GlobalDescriptors(files[:1]).save(tmp_path / "whole.npy")
    with pytest.raises(UserError, match=r"distractors.npy: the global descriptor of image 2 holds NaN or infinity"):
        GlobalDescriptors(files).save(tmp_path / "kept.npy")
    assert not list(tmp_path.glob("*kept*"))
