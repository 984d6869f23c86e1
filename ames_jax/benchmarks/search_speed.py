"""Cost of a query on this machine: measured in an index of any size that is made up, or planned for bytes per image."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ames_jax.benchmarks import flops
from ames_jax.benchmarks.harness import matmul_peak
from ames_jax.data.shards import read_about
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.backbones import open_backbone
from ames_jax.index.building import KILOBYTE, Descriptors, build_index
from ames_jax.index.collection import SearchIndex
from ames_jax.index.index_json import MODEL
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.searcher import STAGES, Searcher
from ames_jax.model.ames import AMESConfig
from ames_jax.model.weights import facts_of
from ames_jax.report.comparison import format_bytes
from ames_jax.report.tables import markdown
from ames_jax.runtime.errors import UserError

REPEATS = 7
BLOCK = 4096
# Of the rate of large matrix products, what scoring reaches: softmax, LayerNorm and memory traffic take the rest.
EXPECTED_SHARE = 0.6
COUNT_BYTES = 2  # a packed store's count of each image's descriptors (`store.py`), beside the bits
MOST = 700  # descriptors that the release's files hold; more was never tried
PLAN_HEADINGS = {
    "stored": "stored",
    "descriptor_bytes": "B per descriptor",
    "descriptors": "descriptors",
    "image": "per image",
    "total": "all images",
    "gflop": "GFLOP per query",
    "milliseconds": "expected ms per query",
}


@dataclasses.dataclass(frozen=True)
class Load:
    """An index and a query: images, bytes of local bits per image (None: those of the index that is made larger), kind of
    global index, and the settings of the searcher (None: the index's)."""

    images: int
    budget: int | None
    global_index: str
    shortlist: int | None
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
        "shortlist": searcher.shortlist,
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """The question, the machine's rate, and one row per way to store descriptors (`PLAN_HEADINGS`, and plain byte counts)."""

    images: int
    budget: int
    shortlist: int
    query_descriptors: int
    model: str
    device: str
    matmul_rate: float
    rows: list[dict[str, Any]]

    def table(self) -> str:
        """The plan for people."""
        title = (
            f"{self.images:,} images, {format_bytes(self.budget)} each; {self.model}, {self.query_descriptors} query "
            f"descriptors, shortlist {self.shortlist}.\nExpected at {EXPECTED_SHARE:.0%} of this machine's "
            f"{self.matmul_rate / 1e9:,.0f} GFLOP/s ({self.device}), re-ranking alone: the global search comes before it.\n\n"
        )
        return title + markdown(self.rows, PLAN_HEADINGS)

    def facts(self) -> dict[str, Any]:
        """The plan for programs."""
        return dataclasses.asdict(self)


def make_plan(
    *,
    images: int,
    budget: int,
    shortlist: int,
    query_descriptors: int,
    model: str,
    dtype: str,
    rate: float | None = None,
) -> Plan:
    """Plans for `budget` bytes of local descriptors per image.

    Args:
      model: a released name: a binary model stores bits; a full-precision one tokens in float16.
      rate: FLOP/s of matrix products; measured here where None.

    Raises:
      UserError: not even one descriptor fits in any way.
    """
    config = dataclasses.replace(AMESConfig.named(model), dtype=dtype)
    stores = {
        "bits (packed store)": (config.bits or 0) // 8,
        "tokens in float16": 0 if config.bits else 2 * config.model_width,
        "descriptors in float16": 2 * config.descriptor_width,
    }
    stores = {stored: size for stored, size in stores.items() if size}
    if budget < min(stores.values()):
        raise UserError(f"--budget={budget} B: one descriptor of {model} alone takes {min(stores.values())} B")
    rate, rows = rate or matmul_peak(dtype), []
    for stored, size in stores.items():
        fits = min(budget // size, MOST)
        row: dict[str, Any] = {"stored": stored, "descriptor_bytes": size, "descriptors": fits}
        if fits:
            # What is stored as bits or tokens need not be projected again.
            work = flops.shortlist(config, query_descriptors, fits, shortlist, packed="packed" in stored)
            work -= shortlist * flops.tokenizer(config, fits) if "tokens" in stored else 0
            total = images * (fits * size + (COUNT_BYTES if "packed" in stored else 0))
            row |= {"image_bytes": fits * size, "image": format_bytes(fits * size)}
            row |= {"total_bytes": total, "total": format_bytes(total)}
            row |= {"gflop": work / 1e9, "milliseconds": 1e3 * work / (rate * EXPECTED_SHARE)}
        rows.append(row)
    device = jax.local_devices()[0].device_kind
    return Plan(images, budget, shortlist, query_descriptors, model, device, rate, rows)
