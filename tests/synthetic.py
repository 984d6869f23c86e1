"""A small data set on disk whose images of one label share descriptors: what training needs, without pictures."""

import json

import numpy as np

from ames_jax.data.neighbour_search import nearest
from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.shards import ImageRecord, open_split, write_shards
from ames_jax.descriptors import DescriptorSet

WIDTH, COUNT = 24, 8


def images(labels, per_label, seed):
    """Images [labels · per_label] of COUNT descriptors: noisy copies of their label's own, some replaced by clutter."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((labels, COUNT, WIDTH))
    names = np.repeat(np.arange(labels), per_label)
    features = centres[names] + 0.4 * rng.standard_normal((len(names), COUNT, WIDTH))
    clutter = rng.random((len(names), COUNT)) < 0.3
    features[clutter] = rng.standard_normal((clutter.sum(), WIDTH))
    return features.astype(np.float32), names


def write_globals(root):
    """The global descriptors behind the lists of `write`, as `extract` leaves them."""
    (root / "global").mkdir()
    for split in ("validation_query", "validation_gallery", "test_query", "test_gallery"):
        source = open_split(root, split)
        pooled = np.asarray(source.read(np.arange(len(source)), COUNT).features, np.float32).mean(1)
        np.save(root / "global" / f"{split}.npy", pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


def write(root, labels=12, seed=0):
    """Writes the data set into `root` and returns it."""
    splits, global_descriptors, found = {}, {}, {}
    for offset, (split, per_label) in enumerate((("train", 6), ("validation", 5), ("test", 5))):
        features, names = images(labels, per_label, seed + offset)
        first = np.arange(len(names)) % per_label < 2
        parts = {split: slice(None)} if split == "train" else {f"{split}_query": first, f"{split}_gallery": ~first}
        for part, rows in parts.items():
            splits[part] = [
                ImageRecord(f"{part}/{i}", int(label), DescriptorSet(f))
                for i, (f, label) in enumerate(zip(features[rows], names[rows]))
            ]
            pooled = features[rows].mean(1)
            global_descriptors[part] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
            found[part] = names[rows]
    write_shards(root, "synthetic", splits, descriptors=COUNT, width=WIDTH, processes=1)
    for query, database in (
        ("train", "train"),
        ("validation_query", "validation_gallery"),
        ("test_query", "test_gallery"),
    ):
        base = global_descriptors[database]
        k = min(len(base) - 1, 30) if query == database else len(base)
        similarities, indices = nearest(global_descriptors[query], base, k, exclude_self=query == database)
        save_neighbours(root / "neighbours" / f"{query}.{database}", similarities, indices, {})
    (root / "ground_truth").mkdir()
    for stage in ("validation", "test"):
        gallery = found[f"{stage}_gallery"]
        queries = [{"ok": np.flatnonzero(gallery == label).tolist(), "junk": []} for label in found[f"{stage}_query"]]
        truth = {"query": f"{stage}_query", "database": f"{stage}_gallery", "queries": queries}
        (root / "ground_truth" / f"{stage}.json").write_text(json.dumps(truth))
    about = {"name": "synthetic", "backbone": "none", "width": WIDTH, "global": "mean"}
    (root / "about.json").write_text(json.dumps(about))
    return root
