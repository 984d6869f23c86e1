"""A file that changed after it was written is named when it is opened."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import synthetic
from conftest import GOLDEN
from flax import nnx

from ames_jax.data.lists import read_list
from ames_jax.data.neighbours import open_neighbours, save_neighbours
from ames_jax.data.safe_pickle import read_pickle
from ames_jax.data.shards import open_split, read_about
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import MODEL_FILE, facts_of, read_model, save_model
from ames_jax.prepare import main
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime import checksums
from ames_jax.runtime.checksums import CHECKSUMS, check, entries, forget, record, recorded
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_array, read_json, write_array, write_json


def test_what_was_recorded_is_compared_on_reading(tmp_path):
    with recorded(tmp_path, "a.npy", "b.json"):
        write_array(tmp_path / "a.npy", np.arange(5))
        write_json(tmp_path / "b.json", {"a": 1})
    assert read_array(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]
    for name, read in (("a.npy", read_array), ("b.json", read_json)):
        data = bytearray((tmp_path / name).read_bytes())
        data[-2] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name} is damaged: its checksum is wrong"):
            read(tmp_path / name)
        (tmp_path / name).write_bytes(data[:-1])
        with pytest.raises(UserError, match=f"{name} has .* bytes, expected"):
            read(tmp_path / name)


def test_our_writers_keep_what_is_known_true(tmp_path):
    with recorded(tmp_path, "a.npy"):
        write_array(tmp_path / "a.npy", np.arange(5))
    write_array(tmp_path / "a.npy", np.arange(6))
    assert len(read_array(tmp_path / "a.npy")) == 6
    forget(tmp_path, "a.npy")
    assert entries(tmp_path) == {}


def test_a_kill_while_a_file_is_written_leaves_no_wrong_entry(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    record(tmp_path, "a")

    def killed() -> None:
        with recorded(tmp_path, "a"):
            (tmp_path / "a").write_bytes(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    check(tmp_path / "a", whole=True)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"files": {}, "crc32": 1}', b"\xff"])
def test_damaged_checksums_are_named(tmp_path, damage):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / CHECKSUMS).write_bytes(damage)
    with pytest.raises(UserError, match=r"CHECKSUMS is damaged"):
        check(tmp_path / "a")


def test_a_data_set_is_whole_or_named(tmp_path, capsys):
    root = synthetic.write(tmp_path / "set")

    def read() -> None:
        RetrievalSet.load(root, "test"), read_about(root), read_json(root / "shards.json")
        open_split(root, "train").ids(), open_split(root, "train").labels()

    assert main(["validate", str(root), "--record"]) == 0
    capsys.readouterr()
    names = (
        "images/train.ids.txt", "images/train.labels.npy", "neighbours/test_query.test_gallery/indices.npy", "shards.json",
        "neighbours/test_query.test_gallery/similarities.npy", "ground_truth/test.json", "about.json", "dataset_info.json",
    )  # fmt: skip
    for name in names:
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:])
        with pytest.raises(UserError, match=name.rpartition("/")[2]):
            read()
        assert main(["validate", str(root)]) == 2
        assert name in capsys.readouterr().out
        (root / name).write_bytes(whole)
    assert main(["validate", str(root)]) == 0


def test_a_model_is_the_same_file_every_time_and_told_when_it_changed(tmp_path):
    model = AMES(AMESConfig(descriptor_width=8, model_width=16, layers=1, heads=2, feed_forward=8), nnx.Rngs(0))
    facts = {letter: letter for letter in "abcdefgh"}
    contents = {(save_model(model, tmp_path / str(i), facts) / MODEL_FILE).read_bytes() for i in range(4)}
    assert len(contents) == 1
    (whole,) = contents
    assert json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["facts"]
    assert facts_of(tmp_path / "0") == facts
    for place in range(0, len(whole), 97):
        (tmp_path / "0" / MODEL_FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(UserError, match=MODEL_FILE):
            read_model(tmp_path / "0")


def test_a_file_without_a_checksum_is_told_once_per_folder_until_it_is_recorded(tmp_path, capsys):
    places = [tmp_path / name for name in ("a.txt", "b.txt", "inner/c.txt")]
    (tmp_path / "inner").mkdir()
    for path in places:
        path.write_text("x.jpg\n")
    for _ in range(2):
        assert [read_list(path).ids for path in places] == [["x.jpg"]] * 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: no checksum of a.txt is recorded")
    assert "prepare validate FILE … --record" in line

    other = tmp_path.with_name(f"{tmp_path.name}-other")
    other.mkdir()
    (other / "a.json").write_text("[]")
    (other / "old.pt").write_bytes((GOLDEN / "torch_tensors_old.pt").read_bytes())
    (other / "a.csv").write_text("x.jpg\n")
    save_neighbours(other / "lists", np.ones((2, 3), np.float32), np.zeros((2, 3), np.int32))
    (other / "lists" / CHECKSUMS).unlink()
    assert main(["validate", *map(str, other.iterdir()), "--record"]) == 0
    assert entries(other).keys() == {"a.json", "old.pt", "a.csv"}
    assert entries(other / "lists").keys() == {"indices.npy", "similarities.npy", "about.json"}
    assert "no checksum" not in capsys.readouterr().err
    checksums._noted.clear()
    read_list(other / "a.csv"), read_pickle(other / "old.pt"), open_neighbours(other / "lists")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("read", [read_array, read_json, check])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_told_and_not_waited_for(tmp_path, read, make):
    make(tmp_path / "a")
    with pytest.raises(UserError, match=r"a (is a folder, a device or a pipe|is missing)"):
        read(tmp_path / "a")
    make(tmp_path / CHECKSUMS)
    with pytest.raises(UserError, match="CHECKSUMS is damaged"):
        check(tmp_path / "b")
    with pytest.raises(UserError, match="a is a folder or a device; name a file to write"):
        write_json(tmp_path / "a", 1)


def test_a_place_in_which_nothing_is_written_is_told(tmp_path, monkeypatch):
    def gone(path, data):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "write_bytes", gone)
    with pytest.raises(UserError, match=r"a\.json cannot be written: No such file or directory"):
        write_json(tmp_path / "a.json", 1)


def test_a_file_too_large_for_checksums_is_not_read(tmp_path):
    with (tmp_path / CHECKSUMS).open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(UserError, match=f"{CHECKSUMS} is damaged"):
        entries(tmp_path)
