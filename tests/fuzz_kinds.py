"""The kinds of files that are damaged in test_fuzz.py: how each is made, small, and all that is read of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import stub_index
import synthetic
from conftest import GOLDEN
from flax import nnx

from ames_jax.commands import convert
from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.lists import read_labels
from ames_jax.data.neighbour_search import nearest
from ames_jax.data.neighbours import open_neighbours, save_neighbours
from ames_jax.data.readers import MemoryReader
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import read_ground_truth, read_neighbours
from ames_jax.data.safe_pickle import read_pickle
from ames_jax.data.shards import link_split, open_split, read_about
from ames_jax.data.store import build_store, open_store
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.detector import Detector, detector_of, detector_weights
from ames_jax.extraction.network_weights import read_weights
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.index import first_stage
from ames_jax.index import index_json as index_facts
from ames_jax.index.collection import SearchIndex
from ames_jax.index.parts import write_images
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.packing import BitPacker
from ames_jax.model.released import load_model
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.model.torch_weights import to_torch
from ames_jax.model.weights import facts_of, read_model, save_model, weights_of
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.logits_file import PairLogits
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.opening import open_set
from ames_jax.retrieval.protocols import METRICS
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.training.checkpoints import RunCheckpoints

CONFIG = AMESConfig(descriptor_width=8, bits=16, model_width=16, heads=2, layers=1, feed_forward=8)


@dataclass(frozen=True)
class Kind:
    """Files that are read together: `files` relative to a folder, `read` gives all that they say."""

    files: tuple[str, ...]
    read: Callable[[Path], Any]
    # An index and a checkpoint keep their checksums themselves.
    always_recorded: bool = False
    # A reading takes so many times as long as that of others, which are so many times as often damaged.
    cost: int = 1


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
    """Read as an evaluation and a search for neighbours read them."""
    values = np.tile(np.linspace(1, 0, 40, dtype=np.float32), (6, 1))
    save_neighbours(folder / "lists", values, np.stack([np.roll(np.arange(40), i) for i in range(6)]), {"global": "x"})
    vectors = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
    np.save(folder / "global.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def read(folder: Path) -> Any:
        found = open_neighbours(folder / "lists")
        data = RetrievalSet(
            name="x", first_stage=found.first_stage(None), ranks=found.indices, similarities=found.similarities,
            judged=judge(found.indices, [{"ok": [i]} for i in range(6)], 40), protocols=METRICS["map"],
            queries=MemoryReader(DescriptorSet(np.zeros((6, 1, 8)))),
            database=MemoryReader(DescriptorSet(np.zeros((40, 1, 8)))),
        )  # fmt: skip
        rows = GlobalDescriptors([folder / "global.npy"])
        return data.ranks, data.similarities, data.first_stage, data.figures(), nearest(rows, rows, 3), rows[:]

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


class Dot(Matcher):
    """The score is the product of the first descriptors."""

    name, facts = "dot", {"matcher": "dot"}

    def stored_bytes(self, count: int) -> int:
        return count

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        return np.asarray(database.features[:, 0] @ query.features[0], np.float32)


def scores(folder: Path) -> Kind:
    """Kept scores, which are made again where they are damaged, and logits.npz."""
    root, counts = synthetic.write(folder / "set", labels=3), Counts(4, 4)
    data = RetrievalSet.load(root, "test")
    PairLogits.made(data, Dot(), ScoreKeeper(folder / "scores"), 5, counts).save(folder / "logits.npz", data)

    def read(folder: Path) -> Any:
        made = ScoreKeeper(folder / "scores").scores(data, Dot(), 5, counts)
        return made, vars(PairLogits.load(str(folder / "logits.npz"), data))

    kept = [f"scores/{path.name}" for path in (folder / "scores").glob("*.npy")]
    return Kind((*kept, "logits.npz"), read)


def foreign(folder: Path) -> Kind:
    """Weights, lists and global descriptors as others keep them."""
    write_checkpoint(folder / "x_detector.pt", detector_weights(Detector(8, nnx.Rngs(0))))
    (folder / "old.pt").write_bytes((GOLDEN / "torch_tensors_old.pt").read_bytes())
    convert.write(AMES(CONFIG, nnx.Rngs(0)), folder / "ames.safetensors", "")
    with h5py.File(folder / "global.hdf5", "w") as file:
        file["features"] = np.eye(6, 8, dtype=np.float32)
    (folder / "labels.tsv").write_text("".join(f"picture {i}.jpg\tpainting {i % 3}\n" for i in range(9)))

    def read(folder: Path) -> Any:
        detector = detector_of(read_weights(folder / "x_detector.pt"), "x_detector.pt")
        return (
            detector_weights(detector), read_pickle(folder / "old.pt"), read_labels(folder / "labels.tsv"),
            weights_of(convert.read(str(folder / "ames.safetensors"))), GlobalDescriptors([folder / "global.hdf5"])[:],
        )  # fmt: skip

    return Kind(("x_detector.pt", "old.pt", "ames.safetensors", "global.hdf5", "labels.tsv"), read)


def index(folder: Path) -> Kind:
    """An index of two parts, one image of which was removed."""
    path, model = folder / "index", AMES(CONFIG, nnx.Rngs(0))
    save_model(model, path / "model")
    known = {"images": 0, "descriptors": stub_index.COUNT, "bits": stub_index.BITS, "budget": 6, "model": "stub"}
    known |= {"format": index_facts.FORMAT, "lam": 0.5, "gamma": 0.1, "global_index": "Flat", "statistics": None}
    known |= {"global_width": stub_index.GLOBAL_WIDTH, "changes": 0, "removed": None, "parts": []}
    (path / "about.json").write_text('{"name": "stub"}')
    first_stage.write_empty(faiss.IndexFlatIP(stub_index.GLOBAL_WIDTH), path / "empty.faiss")
    own = ["model/model.safetensors", "about.json", "empty.faiss"]
    known["files"] = index_facts.recorded(path, own)
    for names in ("abcde", "fgh"):
        images = stub_index.packed({name: ord(name) for name in names})
        known = write_images(path, known, images, BitPacker(model))
    index_facts.publish(path, known)
    parts = ["header.json", "bits.npy", "counts.npy", "sums.npy", "ids.txt", "global.faiss"]
    files = ["index.json", *own, *(f"part-0000{part}/{name}" for part in (0, 1) for name in parts)]

    def read(folder: Path) -> Any:
        found = SearchIndex.open(folder / "index")
        rows = np.arange(len(found))
        images = found.read(rows)
        listed = found.global_index.search(found.global_index[rows[:3]], 5)
        return (
            found.ids,
            images.features,
            images.valid,
            listed,
            weights_of(found.model),
            found.facts,
            read_about(found.path),
        )

    return Kind(tuple(f"index/{name}" for name in files), read, always_recorded=True, cost=2)


def checkpoint(folder: Path) -> Kind:
    """All files of a run's checkpoint."""
    values = {"a": jnp.asarray(np.random.default_rng(0).normal(size=3000).astype(np.float32))}
    saving = RunCheckpoints(folder / "checkpoints")
    saving.save(1, values, {"step": 1, "seed": 3}, wait=True)
    saving.close()

    def read(folder: Path) -> Any:
        found = RunCheckpoints(folder / "checkpoints", writes=False)
        try:
            state, position = found.restore(jax.tree.map(jnp.zeros_like, values))
            return np.asarray(state["a"]), position
        finally:
            found.close()

    files = sorted(path for path in (folder / "checkpoints" / "1").rglob("*") if path.is_file() and path.stat().st_size)
    return Kind(tuple(str(path.relative_to(folder)) for path in files), read, always_recorded=True)


def linked(folder: Path) -> Kind:
    """A split that is the release's HDF5 file itself."""
    release_files(folder)
    link_split(folder / "set", "train", ReleaseSource(folder / "local.hdf5", folder / "list.txt"))

    def read(folder: Path) -> Any:
        split = open_split(folder / "set", "train")
        return split.ids(), split.labels(), split.read(np.arange(len(split)), 3).features

    return Kind(("set/train.source.json",), read)


KINDS = (
    release_files, pickles, models, lists, store, data_set, own_data, statistics,
    scores, foreign, index, checkpoint, linked,
)  # fmt: skip
