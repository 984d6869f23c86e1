"""A retrieval benchmark of random descriptors in the release's HDF5 layout, with lists and ground truth of ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.release_hdf5 import METADATA

JUDGED = {"easy": 10, "hard": 10, "junk": 10}  # images a query, all somewhere in its shortlist
JUDGED_IMAGES = sum(JUDGED.values())


@dataclasses.dataclass(frozen=True)
class Size:
    """How large: by default ROxford (70 queries, 4,993 images) with the release's 700 descriptors of 768."""

    queries: int = 70
    gallery: int = 4993
    listed: int = 400
    descriptors: int = 700
    width: int = 768

    @property
    def needed(self) -> int:
        """Images a list: junk goes behind the shortlist (in Hard the easy ones too), which stays as long."""
        return self.listed + JUDGED["easy"] + JUDGED["junk"]


def make(folder: Path, size: Size) -> Path:
    """Writes query.hdf5, gallery.hdf5 (float16, flat), neighbours/, ground_truth.json; returns manifest.json.

    What is there already, of the same size, is used again.
    """
    manifest = folder / "manifest.json"
    made = folder / "size.json"
    if made.is_file() and json.loads(made.read_text()) == dataclasses.asdict(size):
        return manifest
    shutil.rmtree(folder / "neighbours", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    random = np.random.default_rng(0)
    _write_features(folder / "query.hdf5", size.queries, size, random)
    _write_features(folder / "gallery.hdf5", size.gallery, size, random)
    indices = np.stack([random.permutation(size.gallery)[: size.needed] for _ in range(size.queries)]).astype(np.int32)
    similarities = np.sort(random.random(indices.shape, np.float32))[:, ::-1]
    save_neighbours(folder / "neighbours", similarities, indices)
    truth = []
    for row in indices:
        judged = random.permutation(row[: size.listed])[:JUDGED_IMAGES]
        parts = np.split(judged, np.cumsum(list(JUDGED.values()))[:-1])
        truth.append({kind: part.tolist() for kind, part in zip(JUDGED, parts)})
    (folder / "ground_truth.json").write_text(json.dumps(truth))
    facts = {
        "name": "synthetic (random descriptors)", "metric": "revisited", "first_stage": "random",
        "query": {"descriptors": "query.hdf5"}, "gallery": {"descriptors": "gallery.hdf5"},
        "neighbours": "neighbours", "ground_truth": "ground_truth.json",
    }  # fmt: skip
    manifest.write_text(json.dumps(facts, indent=1))
    made.write_text(json.dumps(dataclasses.asdict(size)))
    return manifest


def _write_features(path: Path, images: int, size: Size, random: np.random.Generator) -> None:
    """float16 [images, K, 5 + D], without padding; images are windows of one long random array, cheap and all different."""
    import h5py

    count = size.descriptors * size.width
    values = random.standard_normal(count + 65536, np.float32).astype(np.float16)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("features", (images, size.descriptors, METADATA + size.width), np.float16)
        row = np.zeros(dataset.shape[1:], np.float16)
        row[:, METADATA - 1] = np.linspace(1, 0, size.descriptors)
        for i in range(images):
            start = i * 61 % 65536
            row[:, METADATA:] = values[start : start + count].reshape(size.descriptors, size.width)
            dataset[i] = row
