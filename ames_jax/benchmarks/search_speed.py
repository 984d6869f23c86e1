"""Time of a query: an index of any size is made up, and one picture is searched in it again and again."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.shards import read_about
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.backbones import open_backbone
from ames_jax.index.building import KILOBYTE, Descriptors, build_index
from ames_jax.index.collection import SearchIndex
from ames_jax.index.index_json import MODEL
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.searcher import STAGES, Searcher
from ames_jax.model.weights import facts_of

REPEATS = 7
BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Load:
    """An index and a query: images, bytes of local bits per image (None: those of the index that is made larger), kind of
    global index, and the settings of the searcher."""

    images: int
    budget: int | None
    global_index: str
    shortlist: int
    query_descriptors: int | None


@dataclasses.dataclass(frozen=True)
class MadeUpDescriptors(Descriptors):
    """Random bits and random global descriptors: as costly to search as real ones."""

    bits: int = 128

    def reader(self, rows: np.ndarray | None = None) -> _RandomBits:
        return _RandomBits(len(self.ids) if rows is None else len(rows), self.bits)


@dataclasses.dataclass(frozen=True)
class _RandomBits:
    images: int
    bits: int

    def __len__(self) -> int:
        return self.images

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        shape = (len(rows), count, self.bits // 8)
        return DescriptorSet(np.random.default_rng(int(rows[0]) + 1).integers(0, 256, shape, np.uint8))


def measure_speed(load: Load, picture: Path, source: Path | None = None) -> dict[str, Any]:
    """Median seconds of each stage of a query, their total, seconds of the start, and bytes per image on disk; source: as of
    `make_up_index`."""
    with tempfile.TemporaryDirectory(prefix="ames_jax_speed_") as name:
        root = Path(name)
        make_up_index(root, load, source)
        start = time.perf_counter()
        searcher = Searcher(root / "index", shortlist=load.shortlist, query_descriptors=load.query_descriptors)
        searcher.warm_up()
        started = time.perf_counter() - start
        runs = [searcher.search(picture).seconds for _ in range(REPEATS)]
        part = root / "index" / "part-00000"
        stored = {
            "local bits": "bits.npy",
            "counts": "counts.npy",
            "checksums": "sums.npy",
            "ids": "ids.txt",
            "global": "global.faiss",
        }
        sizes = {label: (part / file).stat().st_size / load.images for label, file in stored.items()}
    seconds = {stage: float(np.median([run[stage] for run in runs])) for stage in STAGES}
    return {
        **dataclasses.asdict(load),
        "query_descriptors": searcher.query_descriptors,
        "descriptors": searcher.index.facts["descriptors"],
        "seconds": seconds,
        "total": float(np.median([sum(run.values()) for run in runs])),
        "start": started,
        "bytes_per_image": sizes,
    }


def make_up_index(root: Path, load: Load, source: Path | None = None) -> Path:
    """The folder of a new index `root`/index whose images are made up.

    source: an index whose backbone, model and settings it has; None: SIFT with the shipped model.
    """
    if source is None:
        backbone, chosen, place = open_backbone("sift"), ChosenModel.load(None, "sift"), root
        backbone.statistics.save(root / STATISTICS_FILE)
        about = {"name": "made up", "backbone": "sift", "extraction": backbone.settings}
        budget, width = KILOBYTE, backbone.global_width
    else:
        index = SearchIndex.open(source)
        chosen = ChosenModel(index.model, index.facts["model"], facts_of(index.path / MODEL), *index.setting)
        about, place, budget, width = (
            read_about(index.path),
            index.path,
            index.facts["budget"],
            index.global_index.width,
        )
    ids = [f"{row:08d}.jpg" for row in range(load.images)]
    vectors = _random_directions(load.images, width)
    made_up = MadeUpDescriptors(place, "images", about, ids, vectors, None, chosen.model.config.bits)
    build_index(root / "index", made_up, chosen, budget=load.budget or budget, global_index=load.global_index)
    return root / "index"


def _random_directions(count: int, width: int) -> np.ndarray:
    rng, vectors = np.random.default_rng(0), np.empty((count, width), np.float32)
    for start in range(0, count, BLOCK):
        block = rng.standard_normal((min(BLOCK, count - start), width), np.float32)
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors
