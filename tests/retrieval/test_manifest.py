"""Own data: figures by label and by ground truth, and inputs that would give wrong figures are refused."""

import json
import os
import pickle
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.release_pickles import import_neighbours
from ames_jax.retrieval.opening import open_set
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_array

QUERIES, IMAGES = 3, 12


@pytest.fixture
def own_data(tmp_path) -> Path:
    """A folder with a manifest: image i of the gallery has the label i % 3, and the lists are right but for one."""
    folder = tmp_path / "own"
    folder.mkdir()
    for side, count in (("query", QUERIES), ("gallery", IMAGES)):
        with h5py.File(folder / f"{side}.hdf5", "w") as file:
            file["features"] = np.ones((count, 2, 5 + 4), np.float32)
        (folder / f"{side}.txt").write_text("".join(f"{side}{row},{row % 3}\n" for row in range(count)))
    ranks = np.stack([np.argsort(np.arange(IMAGES) % 3 != query, kind="stable") for query in range(QUERIES)])
    save_neighbours(folder / "neighbours", np.tile(np.linspace(1, 0, IMAGES, dtype=np.float32), (QUERIES, 1)), ranks)
    manifest = {
        "name": "own", "metric": "map", "first_stage": "all right", "neighbours": "neighbours",
        "query": {"descriptors": "query.hdf5", "list": "query.txt"},
        "gallery": {"descriptors": "gallery.hdf5", "list": "gallery.txt"},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def figure(folder: Path) -> float:
    return open_set(folder, "custom", "", "", folder / "copies").figures()["mAP"]


def change(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


def give_truth(folder: Path, entry) -> None:
    (folder / "truth.json").write_text(json.dumps([entry] * QUERIES))
    change(folder, ground_truth="truth.json")


def replace_text(name: str, old: str, new: str, count: int = -1):
    def damage(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text().replace(old, new, count))

    return damage


def array(name: str, edit):
    def damage(folder: Path) -> None:
        path = folder / "neighbours" / f"{name}.npy"
        write_array(path, edit(np.load(path)))

    return damage


def no_labels(folder: Path) -> None:
    for side, count in (("query", QUERIES), ("gallery", IMAGES)):
        (folder / f"{side}.txt").write_text("".join(f"{side}{row},-1\n" for row in range(count)))


def labels_and_a_repeat(folder: Path) -> None:
    for side in ("query", "gallery"):
        path = folder / f"{side}.txt"
        lines = [f"{line.replace('gallery7,', 'gallery2,')}x\n" for line in path.read_text().splitlines()]
        path.write_text("".join(lines))


def with_nan(values: np.ndarray) -> np.ndarray:
    values[1, 2] = np.nan
    return values


def test_labels_compare_by_name(own_data):
    expected = figure(own_data)
    assert expected == 100
    for side, count in (("query", QUERIES), ("gallery", IMAGES)):
        (own_data / f"{side}.txt").write_text("".join(f"{side}{row}, {'abc'[row % 3]}\n" for row in range(count)))
    assert figure(own_data) == expected


def test_images_without_a_label_are_right_for_nobody(own_data):
    replace_text("query.txt", ",2", ",-1")(own_data)
    replace_text("gallery.txt", ",2", ",-1")(own_data)
    judged = open_set(own_data, "custom", "", "", own_data / "copies").judged
    assert judged.counts[:, 2].tolist() == [4, 4, 0]
    assert set(judged.query.tolist()) == {0, 1}


@pytest.mark.parametrize("dtype", [np.uint32, np.float32, np.int64, ">i4"])
def test_row_numbers_of_other_types_are_read(own_data, dtype):
    array("indices", lambda rows: rows.astype(dtype))(own_data)
    assert figure(own_data) == 100


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replace_text("gallery.txt", "gallery0", "path,label\ngallery0", 1), "gallery.txt lists 13 images"),
        (replace_text("gallery.txt", ",0\n", ",0,480,640\n"), "gallery.txt line 1: expected `id` or `id,label`"),
        (replace_text("gallery.txt", "gallery5,", "one more,0\ngallery5,"), "gallery.txt lists 13 images"),
        (replace_text("gallery.txt", "gallery7,", "gallery2,"), "image 8 has the id 'gallery2' of image 3"),
        (no_labels, "no query has a right image"),
        (lambda folder: give_truth(folder, {"ok": [99]}), "names database row 99, but the database has 12"),
        (lambda folder: give_truth(folder, {"ok": [0.5]}), r"ok holds \[0.5\]; expected database rows"),
        (lambda folder: give_truth(folder, {"ok": [None]}), "expected database rows"),
        (lambda folder: give_truth(folder, {"ok": [[1, 2], 3]}), "expected database rows"),
        (
            lambda folder: give_truth(folder, {"ok": [0, True]}),
            r"truth.json: .* ok holds \[0, True\]; expected database",
        ),
        (lambda folder: give_truth(folder, {"ok": [[0]]}), "expected database rows"),
        (lambda folder: give_truth(folder, {"ok": [0], "junks": []}), "unknown list 'junks'; did you mean junk"),
        (lambda folder: give_truth(folder, {"ok": []}), r"no query has a right image \(ok\)"),
        (
            lambda folder: give_truth(folder, {"easy": [0], "hard": [], "junk": []}),
            r"no query has a right image \(ok\)",
        ),
        (replace_text("manifest.json", '"metric"', '"name": "twice", "metric"'), "the key 'name' comes twice"),
        (replace_text("gallery.txt", ",0", ",²", 1), "gallery.txt line 2: the label '1', and '²' in line 1"),
        (labels_and_a_repeat, "image 8 has the id 'gallery2' of image 3"),
        (lambda folder: change(folder, metric="mAP"), "manifest.json: metric 'mAP' is not known"),
        (lambda folder: give_truth(folder, {"ok": 3}), "query 0: expected lists such as ok"),
        (lambda folder: give_truth(folder, [3]), "query 0: expected lists such as ok"),
        (lambda folder: give_truth(folder, None), "query 0: expected lists such as ok"),
        (lambda folder: change(folder, query={"descriptor": "query.hdf5"}), "did you mean descriptors"),
        (
            lambda folder: change(folder, query={"descriptors": "query.hdf5", "lst": "a"}),
            "query: unknown key 'lst'; did you",
        ),
        (lambda folder: change(folder, query=[1]), "query: expected an object"),
        (lambda folder: change(folder, name=3), "name: expected text"),
        (array("similarities", with_nan), "NaN or infinity, the first of query 1"),
        (array("similarities", lambda values: 264 * values), "a similarity of 264; expected −1 to 1"),
        (array("similarities", lambda values: values > 0), "similarities bool"),
        (array("indices", lambda rows: rows + 0.5), "that are no rows of a database"),
    ],
)
def test_what_would_give_a_wrong_figure_is_refused(own_data, damage, message):
    damage(own_data)
    with pytest.raises(UserError, match=message) as caught:
        figure(own_data)
    assert "\n" not in str(caught.value)


def test_a_similarity_that_rounding_made_larger_than_1_is_taken(own_data):
    array("similarities", lambda values: values * np.float32(1.0000001))(own_data)
    assert figure(own_data) == 100


@pytest.mark.parametrize(("dtype", "row"), [(np.float16, 2049), (ml_dtypes.bfloat16, 257), (np.float32, 2**24)])
def test_row_numbers_that_their_floats_cannot_hold_are_refused(tmp_path, dtype, row, monkeypatch):
    values = np.array([[[0.5, 0.4]], [[1, row]]], dtype)
    monkeypatch.setattr("ames_jax.data.release_pickles.read_pickle", lambda path: values)
    with pytest.raises(UserError, match="which cannot tell it from its neighbour"):
        import_neighbours(tmp_path / "nn.pkl", tmp_path / "lists")


@pytest.mark.parametrize(("place", "value"), [((0, 1, 0), np.nan), ((1, 1, 0), -1)])
def test_pickled_lists_with_nan_or_negative_rows_are_refused(tmp_path, place, value):
    values = np.array([[[0.5, 0.4]] * 3, [[1, 2]] * 3], np.float32)
    values[place] = value
    (tmp_path / "nn.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(UserError, match=r"nn.pkl: quer(y 1|ies from 0)"):
        import_neighbours(tmp_path / "nn.pkl", tmp_path / "lists")


def test_pickled_similarities_of_whole_numbers_are_refused(tmp_path):
    (tmp_path / "nn.pkl").write_bytes(pickle.dumps(np.array([[[0, 0]] * 3, [[1, 2]] * 3])))
    with pytest.raises(UserError, match=r"nn.pkl: similarities of int64, rounded to whole numbers"):
        import_neighbours(tmp_path / "nn.pkl", tmp_path / "lists")


def test_a_pickle_that_was_replaced_is_imported_again(own_data):
    """Also one of the same size and time."""
    lists, path = own_data / "neighbours", own_data / "nn.pkl"
    for ranks in (np.load(lists / "indices.npy"), np.load(lists / "indices.npy")[:, ::-1]):
        path.write_bytes(pickle.dumps(np.stack([np.load(lists / "similarities.npy"), ranks.astype(np.float32)])))
        os.utime(path, (1, 1))
        change(own_data, neighbours="nn.pkl")
        found = open_set(own_data, "custom", "", "", own_data / "copies").ranks
        np.testing.assert_array_equal(found, ranks)
