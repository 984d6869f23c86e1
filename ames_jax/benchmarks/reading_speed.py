"""`python -m ames_jax.benchmark data`: training batches from each storage, beside a PyTorch DataLoader on the same HDF5."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.benchmarks.evaluation_speed import write_hdf5
from ames_jax.benchmarks.flags import DataFlags
from ames_jax.benchmarks.harness import Harness
from ames_jax.benchmarks.measuring import read_times
from ames_jax.data.neighbours import Neighbours
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.shard_writing import write_shards
from ames_jax.data.shards import open_split
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress
from ames_jax.training.pipeline import ROLES, TripletPipeline
from ames_jax.training.triplets import Triplets

LEAST_IMAGES = 50
COLUMNS = {
    "reader": "reader",
    "images_per_second": "images/s",
    "megabytes_per_second": "MB/s (float16)",
    "ratio": "of PyTorch",
    "waiting": "share of time waiting",
}


def measure(flags: DataFlags) -> dict[str, Any]:
    """Reads batches of triplets from every storage, all from the page cache, one reader after the other."""
    if flags.images < LEAST_IMAGES:
        raise UserError(f"--images={flags.images}: give at least {LEAST_IMAGES}")
    harness = Harness(flags, "images", needs="torch, h5py")
    with tempfile.TemporaryDirectory(prefix="ames_jax_benchmark_") as temporary:
        folder = flags.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        written = {} if (folder / "local.hdf5").exists() else make_files(folder, flags)
        _warm(folder)
        rows = _ours(folder, flags)
        if harness.torch.there:
            per_item = ROLES * flags.triplets
            settings = {"path": str(folder / "local.hdf5"), "images": flags.images, "per_item": per_item}
            settings |= {"items": flags.batches, "step_seconds": flags.step}
            theirs = harness.torch.run("data", settings, {})
            seconds, waiting = float(theirs["seconds"]), float(theirs["waiting"])
            rows.append(_row("PyTorch DataLoader, HDF5, 4 workers", flags, seconds, waiting))
            for row in rows:
                row["ratio"] = row["images_per_second"] / rows[-1]["images_per_second"]
    notes = [
        f"Batches of {flags.triplets} triplets, {flags.descriptors} × {flags.width} float16 per image, all in the page cache; "
        f"waiting is beside a step of {flags.step:g} s."
    ]
    if written:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in written.items())
        notes.append(
            f"Written by one process, the shards from the HDF5 file, read back and compared; MB/s of float16: {rates}."
        )
    return harness.report(COLUMNS, rows, *notes, step_seconds=flags.step, writing_megabytes_per_second=written)


def make_files(folder: Path, flags: DataFlags) -> dict[str, float]:
    """Writes the same images as the release's HDF5, float16 and int8 shards; MB/s of writing by one process each."""
    size, rates = flags.images * flags.descriptors * flags.width * 2 / 1e6, {}
    path = folder / "local.hdf5"
    start = time.perf_counter()
    write_hdf5(path, flags.images, flags.descriptors, flags.width, np.random.default_rng(0))
    rates["HDF5"] = size / (time.perf_counter() - start)
    for dtype in ("float16", "int8"):
        start = time.perf_counter()
        settings = {"descriptors": flags.descriptors, "width": flags.width, "dtype": dtype, "processes": 1}
        write_shards(folder / dtype, "synthetic", {"train": ReleaseSource(path)}, **settings)
        rates[dtype] = size / (time.perf_counter() - start)
    return rates


def _warm(folder: Path) -> None:
    """Reads all files once, so that every reader finds them in the page cache."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def _ours(folder: Path, flags: DataFlags) -> list[dict[str, Any]]:
    """One row per storage and number of workers; the triplets are as scattered over the file as real ones."""
    random, count = np.random.default_rng(0), flags.images
    indices = random.integers(0, count, (count, 100), dtype=np.int32)
    similarities = np.sort(random.random((count, 100), dtype=np.float32), axis=1)[:, ::-1]
    triplets = Triplets(np.arange(count) % 10, Neighbours(indices, similarities), seed=0, top=99, minimum=1)
    sources = {
        "ArrayRecord float16": open_split(folder / "float16", "train"),
        "ArrayRecord int8": open_split(folder / "int8", "train"),
        "HDF5 float16": ReleaseSource(folder / "local.hdf5"),
    }
    rows = []
    for workers in flags.workers:
        for name, source in sources.items():
            reader = f"{name}, {workers} workers" if workers else f"{name}, threads"
            pipeline = TripletPipeline(source, triplets, batch=flags.triplets, lengths=(1, 2), workers=workers)
            stream = pipeline.batches()
            with Progress(reader):
                rows.append(_row(reader, flags, *read_times(stream, flags.batches, flags.step)))
            stream.close()
    return rows


def _row(reader: str, flags: DataFlags, seconds: float, waiting: float) -> dict[str, Any]:
    """One reader: images and 10⁶ bytes of float16 per second, also where int8 is delivered as float32."""
    rate = flags.batches * ROLES * flags.triplets / seconds
    megabytes = rate * flags.descriptors * flags.width * 2 / 1e6
    return {"reader": reader, "images_per_second": rate, "megabytes_per_second": megabytes, "waiting": waiting}
