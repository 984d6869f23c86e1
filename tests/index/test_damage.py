"""Damaged indexes: one line that names the file, never another answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from ames_jax import search
from ames_jax.data.readers import MemoryReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbones import reopen_backbone
from ames_jax.index import first_stage, index_json
from ames_jax.index.building import Descriptors
from ames_jax.index.collection import SearchIndex
from ames_jax.index.index_json import read_facts
from ames_jax.runtime import checksums
from ames_jax.runtime.cache import home
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock

GOLDEN = Path(__file__).parents[1] / "golden" / "index"
pytestmark = pytest.mark.usefixtures("one_device")


def damages(data: bytes, rng: np.random.Generator):
    """The same file with a bit turned, a block of zeros, and cut short."""
    place = int(rng.integers(len(data)))
    yield data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]
    zeros = max(place - 8, 0)
    yield data[:zeros] + bytes(min(16, len(data) - zeros)) + data[zeros + 16 :]
    yield data[:place]
    yield b""


def test_every_damage_of_every_file_is_found(made, tmp_path, monkeypatch):
    """On opening where files are small, else by `verify`."""
    path, rng = tmp_path / "index", np.random.default_rng(0)
    shutil.copytree(made / "index", path)
    cases = 0
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        data = file.read_bytes()
        for damaged in damages(data, rng):
            if damaged == data:
                continue
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=file.name):
                SearchIndex.open(path)
            cases += 1
        file.write_bytes(data)
    assert cases >= 30
    SearchIndex.open(path)
    monkeypatch.setattr(checksums, "READ_ON_OPENING", 0)
    for file in (path / "part-00000" / "bits.npy", path / "part-00000" / "global.faiss"):
        data = file.read_bytes()
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
        index = SearchIndex.open(path)  # a large one is not read
        with pytest.raises(UserError, match=rf"{file.name} is damaged: its checksum is wrong"):
            index.verify()
        file.write_bytes(data)
    assert SearchIndex.open(path).verify()[0] == 10


def test_the_beginning_of_a_large_file_is_compared_on_opening(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "READ_ON_OPENING", 100)
    monkeypatch.setattr(checksums, "HEAD", 50)
    (tmp_path / "a").write_bytes(bytes(200))
    known = index_json.recorded(tmp_path, ["a"])
    index_json.check_files(tmp_path, known)
    (tmp_path / "a").write_bytes(bytes(199) + b"x")
    index_json.check_files(tmp_path, known)
    (tmp_path / "a").write_bytes(b"x" + bytes(199))
    with pytest.raises(UserError, match="a is damaged"):
        index_json.check_files(tmp_path, known)


@pytest.mark.parametrize(
    ("kind", "place", "message"),
    [
        ("flat", 33, "does not compare by inner product"),  # its metric
        ("ivf", 32, r"FAISS fails .*search verify tells whether"),  # whether it is trained
    ],
)
def test_a_faiss_file_that_reads_but_is_damaged_is_told(tmp_path, kind, place, message):
    vectors = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    first_stage.write_empty(first_stage.make_empty(kind, vectors), tmp_path / "empty")
    first_stage.write_part(tmp_path / "empty", vectors, tmp_path / "part")
    content = bytearray((tmp_path / "part").read_bytes())
    content[place] ^= 1
    (tmp_path / "part").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        first_stage.GlobalIndex([tmp_path / "part"]).search(vectors[:1], 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, "x", -1, float("nan"), 1e300, [], {}, True, "missing"])
def test_fields_of_another_type(tmp_path, value):
    """Of an index of an earlier version, which has no checksum that would tell."""
    known = json.loads((GOLDEN / "index.json").read_text())
    right = {None: ("statistics", "pictures"), "x": ("model", "global_index", "statistics", "source")}
    right = right.get(value, ()) if isinstance(value, str | None) else ()

    def changes(mapping):
        for key in mapping.keys() - {"format", "version", *right}:
            yield key, {k: v for k, v in mapping.items() if k != key} | ({} if value == "missing" else {key: value})

    part, other = known["parts"]
    changed = [*changes(known), *((key, {**known, "parts": [wrong, other]}) for key, wrong in changes(part))]
    assert len(changed) >= 12
    for key, content in changed:
        (tmp_path / "index.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"index.json.*({key}|NaN is no JSON)") as error:
            read_facts(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["bits.npy", "counts.npy", "ids.txt"])
def test_local_descriptors_of_an_earlier_version_have_checksums(tmp_path, name):
    shutil.copytree(GOLDEN, tmp_path / "index")
    file = tmp_path / "index" / "part-00001" / name
    data = file.read_bytes()
    file.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(UserError, match=name):
        SearchIndex.open(tmp_path / "index")


def test_an_index_of_an_earlier_version_gets_checksums(tmp_path, capsys):
    shutil.copytree(GOLDEN, tmp_path / "index")
    index = SearchIndex.open(tmp_path / "index")
    assert "written by an earlier version, without checksums" in capsys.readouterr().err
    vectors = index.global_index[np.arange(6)]
    bits = index.read(np.arange(6)).features
    assert search.main(["compact", f"--index={tmp_path / 'index'}"]) == 0
    capsys.readouterr()
    now = SearchIndex.open(tmp_path / "index")
    assert capsys.readouterr().err == ""
    assert now.ids == index.ids
    np.testing.assert_array_equal(now.global_index[np.arange(6)], vectors)
    np.testing.assert_array_equal(now.read(np.arange(6)).features, bits)
    assert now.verify()[0] == 10


def test_a_full_disk_is_one_error(tmp_path):
    with pytest.raises(OSError, match="No space left") as error:
        first_stage.write_empty(faiss.IndexFlatIP(1 << 16), Path("/dev/full"))
    assert error.value.errno == 28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * 2, r"descriptor of scene0/0.jpg has length 2, expected 1"),
        (lambda v: np.where(np.arange(12)[:, None] == 4, np.nan, v), r"descriptor of scene1/1.jpg has length nan"),
        (lambda v: (v * 100).astype(np.int32), r"images.npy holds int32; expected global descriptors"),
    ],
)
def test_global_descriptors_that_are_none(made, tmp_path, change, message):
    shutil.copytree(made / "set", tmp_path / "set")
    file = tmp_path / "set" / "global" / "images.npy"
    np.save(file, change(np.load(file)[:12]))
    for recorded in (tmp_path / "set").rglob("CHECKSUMS"):  # as another program would have written the file
        recorded.unlink()
    with pytest.raises(UserError, match=message):
        Descriptors.open(tmp_path / "set")


@pytest.mark.parametrize(
    "change",
    [{"images": 3}, {"images": {"images": [1]}}, {"backbone": None}, {"extraction": 3}, {"extraction": {}}]
    + [{"extraction": {"name": "sift", **more}} for more in ({"descriptors": "x"}, {"max_side": 1.5}, {"strange": 1})],
)
def test_facts_of_an_extraction_that_are_none(made, tmp_path, change):
    shutil.copytree(made / "set", tmp_path / "set")
    file = tmp_path / "set" / "about.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    opened = reopen_backbone if "extraction" in change else Descriptors.open
    with pytest.raises(UserError, match=r"about.json"):
        opened(tmp_path / "set")


def test_two_builds_at_a_time_are_refused(made, tmp_path):
    flags = [f"--out={tmp_path / 'index'}", f"--model={made / 'model'}"]
    sources = (
        [f"--descriptors={made / 'set'}"],
        [f"--images={made / 'asked'}", f"--statistics={made / 'statistics.npz'}"],
    )
    for source in sources:
        with lock(tmp_path / "index", home()), pytest.raises(UserError, match="is being written by process"):
            search.main(["index", *source, *flags])
    with lock(tmp_path / ".index.extraction", home()), pytest.raises(UserError, match="is being written by process"):
        search.main(["index", *sources[1], *flags])
    assert search.main(["index", *sources[1], *flags]) == 0
    assert len(SearchIndex.open(tmp_path / "index")) == 4


def test_removed_images_in_any_kind_of_index(tmp_path):
    """FAISS is asked for more until enough are left; vectors come back from every kind."""
    vectors = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = np.flatnonzero(np.arange(400) % 3 > 0)
    near = np.argsort(-(vectors[kept] @ vectors[0]))[:200]  # what is most similar to the first is removed
    kept = np.delete(kept, near)
    for kind in ("flat", "ivf", "hnsw", "SQfp16"):
        first_stage.write_empty(first_stage.make_empty(kind, vectors), tmp_path / "empty")
        paths = [tmp_path / f"{kind}{part}" for part in "ab"]
        for path, part in zip(paths, (slice(0, 300), slice(300, 400))):
            first_stage.write_part(tmp_path / "empty", vectors[part], path)
        index = first_stage.GlobalIndex(paths, "nprobe=99" if kind == "ivf" else None, kept)
        np.testing.assert_allclose(index[np.arange(len(kept))], vectors[kept], atol=1e-3)
        similarities, rows = index.search(vectors[:1], 10)
        expected = np.sort(vectors[kept] @ vectors[0])[::-1][:10]
        if kind == "hnsw":  # approximate: it may list fewer
            assert (similarities[0, :1] <= expected[0] + 1e-5).all()
        else:
            np.testing.assert_allclose(similarities[0], expected, atol=1e-3)
            np.testing.assert_allclose(vectors[kept[rows[0]]] @ vectors[0], expected, atol=1e-3)


def test_memory_readers_give_any_rows():
    """What `NewImages` in memory is read through."""
    reader = MemoryReader(DescriptorSet(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)))
    assert reader.read(np.array([2, 0]), 1).features.tolist() == [[[8, 9]], [[0, 1]]]
