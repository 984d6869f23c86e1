"""Writes rendered landmarks as a data set: statistics, shards, global descriptors, neighbours, ground truth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ames_jax.data.neighbours import nearest, save_neighbours
from ames_jax.data.shards import ImageRecord, write_shards
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.keypoints import SIFT_WIDTH
from ames_jax.extraction.sift import SiftStatistics, describe, global_descriptor
from ames_jax.scenes.rendering import Views
from ames_jax.scenes.settings import Settings
from ames_jax.scenes.splits import Split

TRAIN_NEIGHBOURS = 300
BATCH = 256


@dataclasses.dataclass(frozen=True)
class LandmarkRecords(Sequence):
    """The images of one split as records of the strongest `descriptors`, described when they are read."""

    ids: list[str]
    labels: np.ndarray
    views: Views
    statistics: SiftStatistics
    descriptors: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> ImageRecord:
        views, real = self.views, slice(min(int(self.views.count[row]), self.descriptors))
        features = describe(views.histogram[row, real], self.statistics).astype(np.float16)
        geometry = (values[row, real] for values in (views.xy, views.scale, views.weight))
        return ImageRecord(self.ids[row], int(self.labels[row]), DescriptorSet(features, None, *geometry))


def write_set(target: Path, parts: Sequence[Split], views: dict[str, Views], settings: Settings) -> None:
    """Writes everything that belongs to the set into `target`."""
    statistics = learn_statistics(views["train"], settings)
    statistics.save(target / "sift_statistics.npz")
    records = {
        part.name: LandmarkRecords(part.ids, part.numbers, views[part.name], statistics, settings.descriptors)
        for part in parts
    }
    write_shards(
        target, f"embedded_{settings.folder}", records, descriptors=settings.descriptors, width=SIFT_WIDTH, processes=1
    )
    global_descriptors = {name: describe_globally(found, statistics) for name, found in views.items()}
    (target / "global").mkdir()
    for name, values in global_descriptors.items():
        np.save(target / "global" / f"{name}.npy", values)
    _write_neighbours(target / "neighbours", global_descriptors)
    _write_ground_truth(target / "ground_truth", {part.name: part.numbers for part in parts})
    about = {
        "name": settings.name,
        "backbone": "sift",
        "width": SIFT_WIDTH,
        "global": statistics.global_name,
        "extraction": {"name": "sift", "descriptors": settings.detected, "max_side": settings.max_side},
        "renderer_version": settings.version,
        "settings": dataclasses.asdict(settings),
    }
    (target / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def learn_statistics(train: Views, settings: Settings) -> SiftStatistics:
    """Mean, VLAD centres and, where the set has them, local axes of the real descriptors of the training photos."""
    real = np.arange(train.histogram.shape[1]) < train.count[:, None]
    return SiftStatistics.learn(
        train.histogram[real], settings.vlad_centres, settings.seed, settings.spread, settings.axes
    )


def describe_globally(views: Views, statistics: SiftStatistics) -> np.ndarray:
    """float32 [N, Dg], a batch at a time: all descriptors as floats at once would take some hundred MB."""
    real = np.arange(views.histogram.shape[1]) < views.count[:, None]
    batches = []
    for start in range(0, len(real), BATCH):
        rows = slice(start, start + BATCH)
        described = DescriptorSet(describe(views.histogram[rows], statistics), real[rows])
        batches.append(global_descriptor(described, statistics))
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
