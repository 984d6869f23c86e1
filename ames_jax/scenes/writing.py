"""Writes rendered landmarks as a data set: statistics, shards, global descriptors, neighbours, ground truth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ames_jax.data.neighbour_search import nearest
from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.shards import ImageRecord, write_shards
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.keypoints import SIFT_WIDTH, Keypoints
from ames_jax.extraction.sift import SiftStatistics, as_descriptors, describe, global_descriptor
from ames_jax.scenes.settings import Settings

TRAIN_NEIGHBOURS = 300
BATCH = 256
Images = tuple[list[str], np.ndarray, list[Keypoints]]  # ids, labels int64 [N], keypoints of N images


@dataclasses.dataclass(frozen=True)
class LandmarkRecords(Sequence):
    """The images of one split as records of the strongest `descriptors`, described when they are read."""

    ids: list[str]
    labels: np.ndarray
    keypoints: list[Keypoints]
    statistics: SiftStatistics
    descriptors: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> ImageRecord:
        strongest = Keypoints(*(field[: self.descriptors] for field in vars(self.keypoints[row]).values()))
        described = as_descriptors(strongest, self.statistics)
        stored = dataclasses.replace(described, features=described.features.astype(np.float16))
        return ImageRecord(self.ids[row], int(self.labels[row]), stored)


def write_set(target: Path, settings: Settings, images: Mapping[str, Images]) -> None:
    """Writes everything that belongs to the set, split → images, into `target`."""
    statistics = learn_statistics(images["train"][2], settings)
    statistics.save(target / "sift_statistics.npz")
    records = {name: LandmarkRecords(*some, statistics, settings.descriptors) for name, some in images.items()}
    write_shards(
        target, f"embedded_{settings.folder}", records, descriptors=settings.descriptors, width=SIFT_WIDTH, processes=1
    )
    global_descriptors = {
        name: describe_globally(keypoints, statistics, settings.detected) for name, (_, _, keypoints) in images.items()
    }
    (target / "global").mkdir()
    for name, values in global_descriptors.items():
        np.save(target / "global" / f"{name}.npy", values)
    _write_neighbours(target / "neighbours", global_descriptors)
    _write_ground_truth(target / "ground_truth", {name: labels for name, (_, labels, _) in images.items()})
    about = {
        "name": settings.name,
        "backbone": "sift",
        "width": SIFT_WIDTH,
        "global": statistics.global_name,
        "extraction": {"name": "sift", "descriptors": settings.detected, "max_side": settings.max_side},
        "renderer_version": settings.version,
        "settings": settings.content(),
    }
    (target / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def learn_statistics(train: Sequence[Keypoints], settings: Settings) -> SiftStatistics:
    """Mean, VLAD centres and, where the set has them, local axes of the descriptors of the training photos."""
    histogram = np.concatenate([keypoints.histogram for keypoints in train])
    return SiftStatistics.learn(histogram, settings.vlad_centres, settings.seed, settings.spread, settings.axes)


def describe_globally(photos: Sequence[Keypoints], statistics: SiftStatistics, count: int) -> np.ndarray:
    """float32 [N, Dg] of N photos of at most `count` keypoints.

    Photos are padded and described a batch at a time: all descriptors as floats at once would take some hundred MB.
    """
    batches = []
    for start in range(0, len(photos), BATCH):
        part = photos[start : start + BATCH]
        histogram = np.zeros((len(part), count, SIFT_WIDTH), np.uint8)
        real = np.arange(count) < np.array([len(keypoints) for keypoints in part])[:, None]
        histogram[real] = np.concatenate([keypoints.histogram for keypoints in part])
        batches.append(global_descriptor(DescriptorSet(describe(histogram, statistics), real), statistics))
    return np.concatenate(batches)


def _write_neighbours(folder: Path, global_descriptors: dict[str, np.ndarray]) -> None:
    """The training set in itself, and the full ranking of the gallery for each query."""
    train = global_descriptors["train"]
    similarities, indices = nearest(train, train, min(TRAIN_NEIGHBOURS, len(train) - 1), exclude_self=True)
    save_neighbours(folder / "train.train", similarities, indices, {"exclude_self": True})
    for stage in ("validation", "test"):
        queries, gallery = global_descriptors[f"{stage}_query"], global_descriptors[f"{stage}_gallery"]
        similarities, indices = nearest(queries, gallery, len(gallery))
        save_neighbours(folder / f"{stage}_query.{stage}_gallery", similarities, indices, {"exclude_self": False})


def _write_ground_truth(folder: Path, labels: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    for stage in ("validation", "test"):
        query, database = f"{stage}_query", f"{stage}_gallery"
        right = [np.flatnonzero(labels[database] == label).tolist() for label in labels[query]]
        truth = {"query": query, "database": database, "queries": [{"ok": rows, "junk": []} for rows in right]}
        (folder / f"{stage}.json").write_text(json.dumps(truth), encoding="utf-8")
