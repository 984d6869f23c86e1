"""Damaged files: whatever happens to a file that we read, the answer is right, or one line names what is wrong.

Each case damages one file of a kind by a seeded mutation and reads it again. Outcomes: right (the same answer), line (UserError
of one line), traceback (any other exception), silent (another answer). `AMES_JAX_FUZZ=5000` does so many cases.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest
import synthetic
from flax import nnx

from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.neighbours import open_neighbours, save_neighbours
from ames_jax.data.readers import MemoryReader
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import read_ground_truth, read_neighbours
from ames_jax.data.shards import open_split, read_about
from ames_jax.data.store import build_store, open_store
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.packing import BitPacker
from ames_jax.model.released import load_model
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.model.torch_weights import to_torch
from ames_jax.model.weights import facts_of, read_model, save_model, weights_of
from ames_jax.retrieval.opening import open_set
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.checksums import CHECKSUMS, record
from ames_jax.runtime.errors import UserError

CASES = int(os.environ.get("AMES_JAX_FUZZ", "600"))
CONFIG = AMESConfig(descriptor_width=8, bits=16, model_width=16, heads=2, layers=1, feed_forward=8)


@dataclass(frozen=True)
class Kind:
    """Files that are read together: `files` relative to a folder, `read` gives all that they say."""

    files: tuple[str, ...]
    read: Callable[[Path], Any]


def release_files(folder: Path) -> Kind:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 3, 5 + 8)).astype(np.float32)
    rows[..., 3] = 0
    with h5py.File(folder / "local.hdf5", "w") as file:
        file.create_dataset("features", data=rows, chunks=(2, 3, 13))
    (folder / "list.txt").write_text("".join(f"train/{i}, ä.jpg,{i % 2},480,640\n" for i in range(6)))

    def read(folder: Path) -> Any:
        source = ReleaseSource(folder / "local.hdf5", folder / "list.txt")
        return source.ids(), source.labels(), source.read(np.arange(len(source)), 3).features, source[0].descriptors.xy

    return Kind(("local.hdf5", "list.txt"), read)


def pickles(folder: Path) -> Kind:
    lists = np.stack([np.linspace(1, 0, 60).reshape(6, 10), np.arange(60).reshape(6, 10) % 12]).astype(np.float32)
    (folder / "nn.pkl").write_bytes(pickle.dumps(lists, 2))
    truth = {
        "gnd": [{"ok": [i], "junk": [i + 1]} for i in range(6)],
        "imlist": list("abcdefgh"),
        "qimlist": list("uvwxyz"),
    }
    (folder / "gnd_x.pkl").write_bytes(pickle.dumps(truth))
    return Kind(
        ("nn.pkl", "gnd_x.pkl"), lambda at: (read_neighbours(at / "nn.pkl"), read_ground_truth(at / "gnd_x.pkl"))
    )


def models(folder: Path) -> Kind:
    model = AMES(CONFIG, nnx.Rngs(0))
    save_model(model, folder / "run", {"lam": 0.5, "backbone": "sift"})
    write_checkpoint(folder / "model.pt", to_torch(model), {**vars(CONFIG)})

    def read(folder: Path) -> Any:
        return (
            weights_of(read_model(folder / "run")), facts_of(folder / "run"), weights_of(load_model(folder / "model.pt"))
        )  # fmt: skip

    return Kind(("run/model.safetensors", "model.pt"), read)


def lists(folder: Path) -> Kind:
    values = np.tile(np.linspace(1, 0, 40, dtype=np.float32), (6, 1))
    save_neighbours(folder / "lists", values, np.stack([np.roll(np.arange(40), i) for i in range(6)]), {"global": "x"})
    np.save(folder / "global.npy", np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32))

    def read(folder: Path) -> Any:
        found = open_neighbours(folder / "lists")
        return found.indices, found.similarities, found.about, GlobalDescriptors([folder / "global.npy"])[:]

    return Kind(("lists/indices.npy", "lists/similarities.npy", "lists/about.json", "global.npy"), read)


def store(folder: Path) -> Kind:
    reader = MemoryReader(DescriptorSet(np.random.default_rng(0).normal(size=(20, 5, 8)).astype(np.float32)))
    ids = [f"image {i}" for i in range(20)]
    packer = BitPacker(AMES(CONFIG, nnx.Rngs(0)))
    build_store(folder / "g.store", reader, ids, packer, 5, model="m", source="s", setting=(0.5, 1.0))

    def read(folder: Path) -> Any:
        found = open_store(folder / "g.store")
        images = found.read(np.arange(len(found)), 5)
        return images.features, images.valid, found.ids(), found.setting, found.header

    return Kind(tuple(f"g.store/{name}" for name in ("header.json", "bits.npy", "counts.npy", "ids.txt")), read)


def data_set(folder: Path) -> Kind:
    root = synthetic.write(folder / "set", labels=3)

    def read(folder: Path) -> Any:
        root = folder / "set"
        data, train = RetrievalSet.load(root, "test"), open_split(root, "train")
        return (
            data.name, data.first_stage, data.figures(), data.similarities, data.queries.read(np.arange(2), 8).features,
            train.ids(), train.labels(), train.read(np.arange(len(train)), 8).features, read_about(root),
        )  # fmt: skip

    names = ["images/train.ids.txt", "images/train.labels.npy", "dataset_info.json", "features.json", "about.json"]
    names += ["ground_truth/test.json", "neighbours/test_query.test_gallery/indices.npy"]
    names += [path.name for path in root.glob("*train.array_record*")]
    return Kind(tuple(f"set/{name}" for name in names), read)


def own_data(folder: Path) -> Kind:
    for side, count in (("query", 3), ("gallery", 12)):
        with h5py.File(folder / f"{side}.hdf5", "w") as file:
            file["features"] = np.ones((count, 2, 5 + 4), np.float32)
        (folder / f"{side}.txt").write_text("".join(f"{side}{row},{row % 3}\n" for row in range(count)))
    ranks = np.stack([np.roll(np.arange(12), i) for i in range(3)])
    save_neighbours(folder / "neighbours", np.tile(np.linspace(1, 0, 12, dtype=np.float32), (3, 1)), ranks)
    (folder / "truth.json").write_text(json.dumps([{"ok": [i, f"gallery{i + 3}"], "junk": [11]} for i in range(3)]))
    manifest = {
        "name": "own", "metric": "map", "first_stage": "rolled", "neighbours": "neighbours", "ground_truth": "truth.json",
        "query": {"descriptors": "query.hdf5", "list": "query.txt"},
        "gallery": {"descriptors": "gallery.hdf5", "list": "gallery.txt"},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))

    def read(folder: Path) -> Any:
        data = open_set(folder, "custom", "", "", folder / "copies")
        return data.name, data.first_stage, data.figures(), data.judged.counts, [p.name for p in data.protocols]

    return Kind(("manifest.json", "truth.json", "query.txt", "gallery.txt"), read)


def statistics(folder: Path) -> Kind:
    rng = np.random.default_rng(0)
    SiftStatistics.learn(rng.integers(0, 200, (40, 128), np.uint8), centres=3, axes=True).save(folder / "sift.npz")
    return Kind(("sift.npz",), lambda folder: SiftStatistics.load(folder / "sift.npz").fingerprint())


KINDS = (release_files, pickles, models, lists, store, data_set, own_data, statistics)


def mutations(rng: np.random.Generator, content: bytes, name: str) -> bytes:
    """The content of a file, damaged in one of many ways."""
    data, size = bytearray(content), len(content)
    start, length = int(rng.integers(size)), int(rng.integers(1, 65))
    ways = ["bit", "bit", "bits", "cut", "zeros", "noise", "drop", "insert", "empty", "double"]
    way = str(rng.choice(ways + (["field"] * 8 if name.endswith(".json") else [])))
    if way == "field":
        return json.dumps(changed(rng, json.loads(content))).encode()
    if way in ("bit", "bits"):
        for place in rng.integers(size, size=1 if way == "bit" else 8):
            data[place] ^= 1 << int(rng.integers(8))
    elif way == "cut":
        data = data[:start]
    elif way in ("zeros", "noise"):
        piece = min(length, size - start)
        data[start : start + piece] = bytes(piece) if way == "zeros" else rng.bytes(piece)
    elif way == "drop":
        del data[start : start + length]
    elif way == "insert":
        data[start:start] = rng.bytes(length)
    else:
        data = bytearray() if way == "empty" else data + data
    return bytes(data)


def changed(rng: np.random.Generator, value: Any) -> Any:
    """JSON with one field dropped or of another type, somewhere in it."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        copy = value.copy()
        if rng.random() < 0.2:
            del copy[key]
        else:
            copy[key] = changed(rng, value[key])
        return copy
    others = (None, "text", "", -1, 0, 1e300, float("nan"), True, [], {}, [None], {"a": 1}, 2**70, 0.5, "../x")
    return others[int(rng.integers(len(others)))]


def digest(value: Any) -> str:
    """A hash of all in nested containers and arrays."""
    total = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key in part:
                add(key), add(part[key])
        elif isinstance(part, list | tuple):
            total.update(str(len(part)).encode())
            for inner in part:
                add(inner)
        elif isinstance(part, np.ndarray):
            total.update(repr((part.shape, part.dtype.str)).encode() + np.ascontiguousarray(part).tobytes())
        else:
            total.update(repr(part).encode())

    add(value)
    return total.hexdigest()


def outcome(kind: Kind, folder: Path, expected: str) -> str:
    try:
        found = digest(kind.read(folder))
    except UserError as error:
        return "line" if "\n" not in str(error) else f"traceback: a line break in {str(error)!r}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    return "right" if found == expected else "silent"


def cases(folder: Path, make: Callable[[Path], Kind], count: int, recorded: bool) -> Iterator[tuple[str, str]]:
    """The file and the outcome of every case of a kind."""
    folder.mkdir()
    kind = make(folder)
    expected = digest(kind.read(folder))
    for name in kind.files:
        path = folder / name
        if recorded:
            record(path.parent, path.name)
    if not recorded:
        for path in folder.rglob(CHECKSUMS):
            path.unlink()
    assert digest(kind.read(folder)) == expected
    for case in range(count):
        name = kind.files[case % len(kind.files)]
        rng = np.random.default_rng([case, KINDS.index(make), recorded])
        whole = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(mutations(rng, whole, name))
            yield f"{name} (case {case})", outcome(kind, folder, expected)
        finally:
            (folder / name).write_bytes(whole)
            shutil.rmtree(folder / "copies", ignore_errors=True)


@pytest.mark.parametrize("recorded", [True, False], ids=["with checksums", "without checksums"])
@pytest.mark.parametrize("make", KINDS)
def test_damage_is_never_silent_and_never_a_traceback(tmp_path, make, recorded, monkeypatch, capsys):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    found = dict(cases(tmp_path / "files", make, CASES // (2 * len(KINDS)), recorded))
    counts = collections.Counter(result.partition(":")[0] for result in found.values())
    with capsys.disabled():
        print(f"\n{make.__name__} {'with' if recorded else 'without'} checksums: {dict(counts)}")
    wrong = ("traceback", "silent") if recorded else ("traceback",)
    assert {name: result for name, result in found.items() if result.startswith(wrong)} == {}
