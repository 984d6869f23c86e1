"""What version 0.1 wrote (tests/golden) opens, passes its checks, and counts as done when its command is given again."""

import shutil

import numpy as np
import pytest
from conftest import GOLDEN

from ames_jax.data.checks.validation import validate
from ames_jax.data.neighbours import open_neighbours, search_to_folder
from ames_jax.data.records import ImageRecord
from ames_jax.data.shards import open_split, read_about, write_shards
from ames_jax.data.store import open_store
from ames_jax.descriptors import DescriptorSet


def images():
    random, made = np.random.default_rng(0), []
    for i in range(6):
        count = 3 - i % 2
        features = random.normal(size=(count, 8)).astype(np.float16)
        xy, scale = random.random((count, 2), np.float32), np.full(count, 2, np.float32)
        weight = np.arange(count, 0, -1).astype(np.float32)
        made.append(ImageRecord(f"a, b/{i}.jpg", i // 3, DescriptorSet(features, None, xy, scale, weight)))
    return made, random


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path):
    return shutil.copytree(GOLDEN / "data_set", tmp_path / "data_set")


def test_a_data_set_opens(root):
    assert validate([root]).problems == []
    assert read_about(root) == {"name": "toy", "backbone": "none", "global": "toy CLS"}
    source, (made, random) = open_split(root, "train"), images()
    assert source.ids() == [image.id for image in made]
    np.testing.assert_array_equal(source.labels(), [image.label for image in made])
    for image, written in zip(made, (source[row] for row in range(6))):
        count, found = image.descriptors.count, written.descriptors
        assert found.valid.sum() == count
        np.testing.assert_allclose(found.features[:count], image.descriptors.features, atol=0.02)
        for name in ("xy", "scale", "weight"):
            np.testing.assert_array_equal(getattr(found, name)[:count], getattr(image.descriptors, name))
    lists = open_neighbours(root / "neighbours" / "train.train")
    values = (random.normal(size=(6, 4)) + 4 * np.eye(4)[np.arange(6) // 3]).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_array_equal(np.load(root / "global" / "train.npy"), values)
    similarities = values @ values.T - 9 * np.eye(6)
    np.testing.assert_array_equal(lists.indices, np.argsort(-similarities, axis=1)[:, :2])


def test_the_same_commands_find_it_finished(root):
    before = content(root)
    write_shards(root, "toy", {"train": images()[0]}, descriptors=3, width=8, dtype="int8")
    values = np.load(root / "global" / "train.npy")
    assert search_to_folder(root / "neighbours" / "train.train", values, values, 2, exclude_self=True)
    assert content(root) == before
    next(root.glob("*.array_record*")).unlink()
    write_shards(root, "toy", {"train": images()[0]}, descriptors=3, width=8, dtype="int8")
    after = content(root)
    for path in (path for path in before if path.suffix != ".json"):
        assert after[path] == before[path]


def test_a_packed_store_opens_and_knows_no_setting():
    store = open_store(GOLDEN / "index" / "part-00000")
    store.verify()
    assert store.setting is None
    assert len(store) == len(store.ids()) == len(store.read(np.arange(len(store)), 9).features)
