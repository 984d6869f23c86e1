"""Data sets on disk: written whole, continued after a kill, checked, and read by TFDS."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ames_jax.data import shard_writing
from ames_jax.data.shard_writing import verify_shard, write_shard
from ames_jax.data.shards import ImageRecord, open_split, write_shards
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.checksums import CHECKSUMS, forget, record
from ames_jax.runtime.errors import UserError


def images(count, rows=6, width=8, seed=0):
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        real = rows - i % 3
        features = random.normal(size=(real, width)).astype(np.float16)
        xy = random.random((real, 2), np.float32)
        found.append(ImageRecord(f"folder, one/{i:03d}.jpg", i * 10**10, DescriptorSet(features, xy=xy)))
    return found


def write(root, count=10, **options):
    settings = {"descriptors": 6, "width": 8, "shards": 3, **options}
    splits = settings.pop("splits", None) or {"train": images(count), "test_query": images(2, seed=1)}
    write_shards(root, "toy", splits, **settings)


def content(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write(root)
    return root


def test_records_keep_their_order(written):
    source = open_split(written, "train")
    assert len(source) == 10
    for row, expected in enumerate(images(10)):
        found = source[row]
        assert (found.id, found.label) == (expected.id, expected.label)
        real = expected.descriptors.count
        np.testing.assert_array_equal(found.descriptors.features[:real], expected.descriptors.features)
        np.testing.assert_array_equal(found.descriptors.xy[:real], expected.descriptors.xy)
        assert found.descriptors.valid.sum() == real
    assert source.ids() == [image.id for image in images(10)]
    np.testing.assert_array_equal(source.labels(), [image.label for image in images(10)])
    assert not (written / ".unfinished").exists()
    with pytest.raises(IndexError):
        source[10]


def test_tfds_reads_it(written):
    source = tfds.builder_from_directory(written).as_data_source("train")
    assert [record["id"].decode() for record in source] == [image.id for image in images(10)]
    assert source[4]["features"].shape == (6, 8)


def test_tensorflow_is_not_imported(written):
    code = f"import sys; from ames_jax.data.shards import open_split; open_split({str(written)!r}, 'train')[0]"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'tensorflow' not in sys.modules"], check=True, cwd=_root())


def _root():
    import ames_jax

    return os.path.dirname(os.path.dirname(ames_jax.__file__))


def test_source_is_picklable_and_safe_in_threads(written):
    source = pickle.loads(pickle.dumps(open_split(written, "train")))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: source[row].id, list(range(10)) * 5))
    assert found == [image.id for image in images(10)] * 5


def test_processes_write_the_same_bytes(written, tmp_path):
    splits = {name: open_split(written, name) for name in ("train", "test_query")}
    write(tmp_path, splits=splits, processes=2)
    facts = json.loads((tmp_path / "shards.json").read_text())
    for entry in facts.values():
        assert len(entry["settings"].pop("inputs")) == 16  # of the files that this copy was made from
    assert facts == json.loads((written / "shards.json").read_text())
    found, expected = content(tmp_path), content(written)
    for name in ("shards.json", CHECKSUMS):
        assert found.pop(name) != expected.pop(name)
    assert found == expected


def test_no_more_processes_are_started_than_there_are_shards(tmp_path, monkeypatch):
    asked, completed = [], shard_writing._completed
    alone = lambda tasks, splits, processes: asked.append(processes) or completed(tasks, splits, 1)  # noqa: E731
    monkeypatch.setattr(shard_writing, "_completed", alone)
    write(tmp_path, processes=1000)
    assert asked == [5]


class Killed(list):
    """Images of which the eighth ends the process."""

    def __getitem__(self, row):
        if row == 7:
            raise KeyboardInterrupt
        return super().__getitem__(row)


def test_a_killed_run_continues_and_ends_with_the_same_bytes(written, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, splits={"train": Killed(images(10)), "test_query": images(2, seed=1)})
    with pytest.raises(UserError, match="holds no data set"):
        open_split(tmp_path, "train")
    whole = sorted(tmp_path.glob("*.array_record*"))
    assert len(whole) == 2, "rows 0..2 and 3..5 are whole, the shard with row 7 must not be there"
    before = [path.stat().st_mtime_ns for path in whole]
    write(tmp_path)
    assert [path.stat().st_mtime_ns for path in whole] == before, "whole shards are not written again"
    assert content(tmp_path) == content(written)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_killed_at_its_very_end_leaves_nothing(written, tmp_path, recorded):
    """After the last file of the data set: before its checksum is kept, or before the receipts are gone."""
    root = shutil.copytree(written, tmp_path / "toy")
    (root / ".unfinished" / "train").mkdir(parents=True)
    if not recorded:
        forget(root, "shards.json", "features.json", "dataset_info.json")
        (root / "features.json").write_text("{}")  # is made again, not taken as it is
    write(root)
    assert content(root) == content(written)
    assert not (root / ".unfinished").exists()


def test_a_shard_cut_short_after_its_receipt_is_written_again(written, tmp_path):
    splits = {"train": images(10), "test_query": images(2, seed=1)}
    plan = shard_writing.plan_shards(tmp_path, "toy", splits, descriptors=6, width=8, shards=3)
    for task in plan:
        write_shard(task, splits[task.split][task.start : task.stop])
    plan[1].path.write_bytes(plan[1].path.read_bytes()[:-100])
    plan[2].receipt.unlink()
    assert [task.is_written() for task in plan] == [True, False, False, True, True]
    write(tmp_path)
    assert content(tmp_path) == content(written)


def test_a_damaged_shard_is_found_before_the_data_set_is_finished(tmp_path):
    splits = {"train": images(10)}
    plan = shard_writing.plan_shards(tmp_path, "toy", splits, descriptors=6, width=8, shards=2)
    for task in plan:
        write_shard(task, splits["train"][task.start : task.stop])
    other = {"train": images(10, seed=9)}
    aside = tmp_path / "other"
    for task in shard_writing.plan_shards(aside, "toy", other, descriptors=6, width=8, shards=2):
        write_shard(task, other["train"][task.start : task.stop])
    swapped = (aside / plan[1].path.name).read_bytes()
    whole = plan[1].path.read_bytes()
    plan[1].path.write_bytes(swapped)
    with pytest.raises(UserError, match=r"00001-of-00002: its records are not those that were written; delete it"):
        write(tmp_path, splits=splits, shards=2)
    plan[1].path.write_bytes(b"x" * len(whole))
    with pytest.raises(UserError, match="00001-of-00002: cannot be read"):
        write(tmp_path, splits=splits, shards=2)
    plan[1].path.unlink()
    with pytest.raises(UserError, match="not written yet"):
        verify_shard(plan[1])
    write(tmp_path, splits=splits, shards=2)
    assert plan[1].path.read_bytes() == whole


def test_a_finished_data_set_is_left_alone_and_mended(written, tmp_path):
    write(tmp_path)
    shard = tmp_path / "toy-train.array_record-00001-of-00003"
    before = shard.stat().st_mtime_ns
    write(tmp_path)
    assert shard.stat().st_mtime_ns == before
    shard.unlink()
    with pytest.raises(UserError, match=r"00001-of-00003 is missing"):
        open_split(tmp_path, "train")[0]
    write(tmp_path)
    assert content(tmp_path) == content(written)


def test_splits_can_be_added(written, tmp_path):
    write(tmp_path, splits={"train": images(10)})
    write(tmp_path, splits={"test_query": images(2, seed=1)})
    assert content(tmp_path) == content(written)


def test_a_split_that_was_killed_does_not_stop_another_one(written, tmp_path):
    """TFDS refused the shards of the unfinished split ("Splits … do not match"), and the root was lost for both."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, splits={"train": Killed(images(10))})
    write(tmp_path, splits={"test_query": images(2, seed=1)})
    assert len(open_split(tmp_path, "test_query")) == 2
    write(tmp_path, splits={"train": images(10)})
    names = [path for path in content(written) if path.endswith((".txt", ".npy")) or "array_record" in path]
    assert {name: content(tmp_path)[name] for name in names} == {name: content(written)[name] for name in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"descriptors": 5}, "descriptors was 6, is 5"),
        ({"dtype": "int8"}, "dtype was 'float16', is 'int8'"),
        ({"splits": {"train": images(9)}}, "images was 10, is 9"),
        ({"splits": {"other": images(4)}, "width": 16}, "width was 8, is 16"),
        ({"shards": 2}, "shards was 3, is 2"),
    ],
)
def test_other_settings_are_refused(written, change, message):
    with pytest.raises(UserError, match=message):
        write(written, **change)


def test_other_settings_are_refused_in_an_unfinished_data_set(tmp_path):
    shard_writing.plan_shards(tmp_path, "toy", {"train": images(10)}, descriptors=6, width=8, shards=3)
    with pytest.raises(UserError, match="width was 8, is 16"):
        write(tmp_path, splits={"train": images(10)}, width=16)


def test_errors_name_what_is_missing(written, tmp_path):
    with pytest.raises(UserError, match=r"no split 'tset'; it has: test_query, train"):
        open_split(written, "tset")
    with pytest.raises(UserError, match="has no images"):
        write(tmp_path, splits={"train": []})


@pytest.mark.parametrize("split", ["a/b", "a b", "a[1]", "..", "", "1a", "a.b", "ä"])
def test_names_that_files_cannot_hold_are_refused(tmp_path, split):
    with pytest.raises(UserError, match=r"split .*expected letters, digits"):
        write(tmp_path, splits={split: images(3)})


def test_parts_of_another_data_set_are_told(written, tmp_path):
    """Each is whole by itself, of the same size, and its checksum is right."""
    others = [dataclasses.replace(image, id=image.id.replace("one", "two"), label=-image.label) for image in images(10)]
    write(tmp_path / "other", splits={"train": others, "test_query": images(2, seed=1)})
    for name, message in (("train.ids.txt", "the id 'folder, one/000.jpg'"), ("train.labels.npy", "the label")):
        root = tmp_path / name
        shutil.copytree(written, root)
        shutil.copy(tmp_path / "other" / "images" / name, root / "images" / name)
        record(root / "images", name)
        with pytest.raises(UserError, match=f"{name}: record .* has {message}.* of another data set"):
            open_split(root, "train").ids(), open_split(root, "train").labels()
    shard = "toy-train.array_record-00001-of-00003"
    shutil.copytree(written, tmp_path / "set")
    shutil.copy(tmp_path / "other" / shard, tmp_path / "set" / shard)
    with pytest.raises(UserError, match=f"{shard}: its records are not those that were written"):
        open_split(tmp_path / "set", "train")[0]


@pytest.mark.parametrize(("key", "value"), [("files", []), ("settings", {}), ("files", {"a": {"records": "1"}})])
def test_a_damaged_list_of_shards_is_told(written, tmp_path, key, value):
    shutil.copytree(written, tmp_path / "set")
    path = tmp_path / "set" / "shards.json"
    shards = json.loads(path.read_text())
    shards["train"][key] = value
    path.write_text(json.dumps(shards))
    forget(path.parent, path.name)
    with pytest.raises(UserError, match=r"shards.json.*: "):
        open_split(tmp_path / "set", "test_query")[0]
    with pytest.raises(UserError, match=r"shards.json.*: "):
        write(tmp_path / "set")
