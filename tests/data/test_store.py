"""The packed store: same bits whatever the batch, whole or refused, and every way in which a file can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flax import nnx

from ames_jax.data.store import build_store, open_store
from ames_jax.descriptors import DescriptorSet, pack_bits
from ames_jax.index.reranking import rerank
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.packing import BitPacker, binarizer_fingerprint
from ames_jax.runtime.errors import UserError

WIDTH, BITS = 24, 32


def model(seed: int = 0, bits: int | None = BITS) -> AMES:
    config = AMESConfig(descriptor_width=WIDTH, bits=bits, model_width=16, layers=1, feed_forward=16)
    return AMES(config, nnx.Rngs(seed))


class ArrayReader:
    """Descriptors in memory; remembers the largest block that was asked for."""

    def __init__(self, features: np.ndarray, valid: np.ndarray | None):
        self.features, self.valid, self.largest = features, valid, 0

    def __len__(self) -> int:
        return len(self.features)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        self.largest = max(self.largest, len(rows))
        return DescriptorSet(self.features[rows, :count], None if self.valid is None else self.valid[rows, :count])


def gallery(images: int = 600, descriptors: int = 9) -> ArrayReader:
    rng = np.random.default_rng(0)
    valid = np.arange(descriptors) < rng.integers(0, descriptors + 1, images)[:, None]
    return ArrayReader(rng.normal(size=(images, descriptors, WIDTH)).astype(np.float16), valid)


def build(path, reader, packer=None, descriptors=9):
    ids = [f"a/{row}.jpg" for row in range(len(reader))]
    return build_store(path, reader, ids, packer or BitPacker(model()), descriptors, model="m", source="s")


def test_a_store_holds_the_bits_of_its_images(tmp_path):
    reader, packer = gallery(), BitPacker(model())
    store = build(tmp_path / "g.store", reader, packer)
    assert reader.largest <= 256
    rows = np.array([599, 0, 300, 299])
    read = store.read(rows, 7)
    np.testing.assert_array_equal(read.valid, reader.valid[rows, :7])
    unit = reader.features.astype(np.float64)
    projections = unit[rows, :7] @ np.asarray(model().tokenizer.hyperplanes[...], np.float64)
    expected = np.where(read.valid[..., None], pack_bits(projections), 0)
    np.testing.assert_array_equal(read.features, expected)
    assert store.ids()[300] == "a/300.jpg"
    assert len(store) == 600
    assert store.header["bits"] == BITS
    store.verify()


def test_one_descriptor_costs_its_bits(tmp_path):
    build(tmp_path / "g.store", gallery())
    header_of_npy = 128
    assert (tmp_path / "g.store" / "bits.npy").stat().st_size == 600 * 9 * BITS // 8 + header_of_npy


def test_bits_do_not_depend_on_how_many_are_asked_for():
    """200 descriptors per image, so that the blocks of 64 are crossed."""
    reader, packer = gallery(40, 200), BitPacker(model())
    everything = packer.pack(reader.read(np.arange(40), 200)).features
    for rows, count in ((np.array([3]), 200), (np.array([3, 17]), 65), (np.arange(40), 50)):
        np.testing.assert_array_equal(packer.pack(reader.read(rows, count)).features, everything[rows, :count])


def test_real_descriptors_stand_first_in_a_store(tmp_path):
    reader, packer = gallery(3, 4), BitPacker(model())
    reader.valid = np.array([[False, True, False, True], [True] * 4, [False] * 4])
    store = build(tmp_path / "g.store", reader, packer, descriptors=4)
    read = store.read(np.arange(3), 4)
    np.testing.assert_array_equal(read.valid.sum(axis=1), [2, 4, 0])
    alone = packer.pack(DescriptorSet(reader.features[:1, [1, 3]])).features
    np.testing.assert_array_equal(read.features[0, :2], alone[0])


def test_packed_bits_stay_as_they_are():
    bits = DescriptorSet(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert BitPacker(model()).pack(bits) is bits


def test_an_image_without_descriptors_has_no_bits():
    empty = DescriptorSet(np.zeros((2, 0, WIDTH), np.float32))
    assert BitPacker(model()).pack(empty).features.shape == (2, 0, BITS // 8)


def test_a_full_precision_model_has_no_bits():
    with pytest.raises(UserError, match="full-precision model has no bits"):
        BitPacker(model(bits=None))


def test_nothing_is_left_of_a_build_that_fails(tmp_path):
    reader = gallery()
    reader.features[500, 0, 3], reader.valid[500, 0] = np.nan, True
    with pytest.raises(UserError, match=r"images 256…511.*NaN"):
        build(tmp_path / "g.store", reader)
    assert not (tmp_path / "g.store").exists()
    reader.features[500, 0, 3] = 0
    build(tmp_path / "g.store", reader).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["g.store"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def change_header(**changes):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("bits.npy", cut, r"bits.npy has \d+ bytes, expected \d+: it was cut short"),
        ("bits.npy", lambda path: path.unlink(), "bits.npy is missing"),
        ("counts.npy", flip, "counts.npy is damaged"),
        ("header.json", lambda path: path.unlink(), "is not a packed store"),
        ("header.json", cut, "cannot be read as JSON"),
        ("header.json", lambda path: path.write_text("{}"), "not the header of a packed store"),
        ("header.json", change_header(version=2), "version 2, this program reads version 1"),
        ("header.json", change_header(images=7, crc32=None), "the header says"),  # as earlier versions wrote it
        ("header.json", change_header(model="another"), "header.json is damaged: its checksum is wrong"),
        ("header.json", change_header(modal="x", crc32=None), "unknown key 'modal'"),
        (
            "header.json",
            change_header(images="7"),
            "images: expected a whole number from 0 on, found '7'; build",
        ),
        (
            "header.json",
            change_header(files={"bits.npy": 3}),
            "files: counts.npy is missing",
        ),
        (
            "header.json",
            change_header(setting={"lam": -1, "gamma": 1}),
            "setting: lam: expected a number in 0",
        ),
        ("sums.npy", flip, "sums.npy is damaged"),
    ],
)
def test_what_is_not_a_whole_store_is_refused_by_name(tmp_path, file, damage, message):
    build(tmp_path / "g.store", gallery())
    damage(tmp_path / "g.store" / file)
    with pytest.raises(UserError, match=message):
        open_store(tmp_path / "g.store")


def test_damaged_bits_are_found_when_they_are_read(tmp_path):
    build(tmp_path / "g.store", gallery())
    flip(tmp_path / "g.store" / "bits.npy")
    store = open_store(tmp_path / "g.store")
    store.read(np.arange(len(store) - 1), 2)
    with pytest.raises(UserError, match=rf"bits.npy is damaged: image {len(store) - 1};"):
        store.read(np.array([3, len(store) - 1]), 2)


def test_damaged_bits_are_found_by_verify(tmp_path):
    store = build(tmp_path / "g.store", gallery())
    flip(tmp_path / "g.store" / "bits.npy")
    with pytest.raises(UserError, match=r"bits.npy is damaged"):
        store.verify()


def test_bits_of_another_model_are_refused(tmp_path):
    build(tmp_path / "g.store", gallery())
    assert len(open_store(tmp_path / "g.store", binarizer_fingerprint(model()))) == 600
    with pytest.raises(UserError, match="made by another model"):
        open_store(tmp_path / "g.store", binarizer_fingerprint(model(seed=1)))


def test_images_beyond_the_store_are_refused(tmp_path):
    store = build(tmp_path / "g.store", gallery())
    with pytest.raises(UserError, match="asked for image 600, but the store holds 600"):
        store.read(np.array([0, 600]), 4)


@pytest.mark.parametrize(
    ("ids", "message"), [(["a"], "1 ids for 600 images"), (["a\nb"] + ["c"] * 599, "holds a line break")]
)
def test_ids_must_fit(tmp_path, ids, message):
    with pytest.raises(UserError, match=message):
        build_store(tmp_path / "g", gallery(), ids, BitPacker(model()), 4, model="m", source="s")


def test_a_store_keeps_the_setting_of_its_model(tmp_path):
    """λ .35 and γ .10 of the released DINOv2 model were taken for any store."""
    binary, reader = model(), gallery(5)
    ids = [str(row) for row in range(5)]
    build_store(tmp_path / "own", reader, ids, BitPacker(binary), 9, model="m", source="s", setting=(0.5, 3.0))
    store, query, similarities = open_store(tmp_path / "own"), reader.read(np.array([2]), 9)[0], np.linspace(1, 0, 5)
    assert store.setting == (0.5, 3.0)
    hits = rerank(binary, query, store, ids, similarities)
    assert hits == rerank(binary, query, store, ids, similarities, lam=0.5, gamma=3.0)
    assert hits != rerank(binary, query, store, ids, similarities, lam=0.35, gamma=0.10)
    assert build(tmp_path / "unknown", reader).setting is None
    with pytest.raises(UserError, match=r"does not say .* give lam and gamma"):
        rerank(binary, query, open_store(tmp_path / "unknown"), ["a/1.jpg"], [1])


def test_an_existing_store_is_not_overwritten(tmp_path):
    build(tmp_path / "g.store", gallery())
    with pytest.raises(UserError, match="exists already"):
        build(tmp_path / "g.store", gallery())
