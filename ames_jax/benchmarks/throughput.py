"""How fast training batches come from disk: our pipeline on each storage, next to the release's way in PyTorch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ames_jax.data.neighbours import Neighbours
from ames_jax.data.records import ImageRecord
from ames_jax.data.release_hdf5 import METADATA, ReleaseSource
from ames_jax.data.shards import open_split, write_shards
from ames_jax.descriptors import DescriptorSet
from ames_jax.training.pipeline import ROLES, TripletPipeline
from ames_jax.training.triplets import Triplets


@dataclasses.dataclass(frozen=True)
class Throughput:
    """One row of the table.

    Attributes:
      reader: what was read and how.
      images_per_second: delivered in batches, with nothing else to do.
      megabytes_per_second: the same in 10⁶ bytes of float16 descriptors, also where int8 is delivered as float32.
      waiting: share of the time spent waiting for a batch when each is followed by a step of `step_seconds`; NaN when
        not measured.
    """

    reader: str
    images_per_second: float
    megabytes_per_second: float
    waiting: float


class SyntheticImages:
    """Random images without padding; picklable, and cheap to make."""

    def __init__(self, images: int, descriptors: int, width: int) -> None:
        self.shape = (images, descriptors, width)
        count = descriptors * width
        self._values = np.random.default_rng(0).normal(size=count + 4096).astype(np.float16)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> ImageRecord:
        images, descriptors, width = self.shape
        if row >= images:
            raise IndexError(row)
        start = row * 61 % 4096
        features = self._values[start : start + descriptors * width].reshape(descriptors, width)
        return ImageRecord(str(row), row % 10, DescriptorSet(features))


def make_files(folder: Path, images: int, descriptors: int, width: int) -> dict[str, float]:
    """Writes the same images as float16 shards, int8 shards and the release's HDF5; MB/s of writing by one process each."""
    import h5py

    source = SyntheticImages(images, descriptors, width)
    size = images * descriptors * width * 2 / 1e6
    rates = {}
    for dtype in ("float16", "int8"):
        start = time.perf_counter()
        write_shards(
            folder / dtype,
            "synthetic",
            {"train": source},
            descriptors=descriptors,
            width=width,
            dtype=dtype,
            processes=1,
        )
        rates[dtype] = size / (time.perf_counter() - start)
    start = time.perf_counter()
    with h5py.File(folder / "local.hdf5", "w") as file:
        dataset = file.create_dataset("features", (images, descriptors, METADATA + width), np.float16)
        row = np.zeros(dataset.shape[1:], np.float16)
        for i in range(images):
            row[:, METADATA:] = source[i].descriptors.features
            dataset[i] = row
    rates["HDF5"] = size / (time.perf_counter() - start)
    return rates


def synthetic_triplets(images: int, seed: int = 0) -> Triplets:
    """Triplets over random neighbours, as scattered over the file as real ones."""
    random = np.random.default_rng(seed)
    indices = random.integers(0, images, (images, 100), dtype=np.int32)
    similarities = np.sort(random.random((images, 100), dtype=np.float32), axis=1)[:, ::-1]
    return Triplets(np.arange(images) % 10, Neighbours(indices, similarities), seed=seed, top=99, minimum=1)


def measure(
    folder: Path,
    *,
    images: int = 1200,
    descriptors: int = 400,
    width: int = 768,
    batch: int = 100,
    batches: int = 15,
    step_seconds: float = 0.5,
    workers: Sequence[int] = (0,),
    torch_python: str | None = sys.executable,
) -> list[Throughput]:
    """Reads batches of triplets from every storage, all from the page cache, one reader after the other.

    Args:
      folder: where `make_files` put the synthetic files.
      images, descriptors, width: of them; 1200 × 400 × 768 takes 2.2 GB.
      batch: triplets a batch.
      batches: that are timed, after a first one that warms up.
      step_seconds: length of the imagined step on an accelerator, for the share of waiting.
      workers: reading processes of our pipeline to try; 0 reads in threads.
      torch_python: a Python that has torch and h5py, for the release's loader; None leaves it out.

    Returns:
      a row for each reader; the PyTorch row is left out where that Python has no torch.
    """
    _warm(folder)
    triplets = synthetic_triplets(images)
    megabytes = descriptors * width * 2 / 1e6
    sources = {
        "ArrayRecord float16": open_split(folder / "float16", "train"),
        "ArrayRecord int8": open_split(folder / "int8", "train"),
        "HDF5 float16": ReleaseSource(folder / "local.hdf5"),
    }
    rows = []
    for count in workers:
        for name, source in sources.items():
            pipeline = TripletPipeline(source, triplets, batch=batch, lengths=(1, 2), workers=count)
            rate, waiting = _time(pipeline.batches(), batches, ROLES * batch, step_seconds)
            how = f"{count} workers" if count else "threads"
            rows.append(Throughput(f"{name}, {how}", rate, rate * megabytes, waiting))
    if torch_python is not None:
        rows += _torch(torch_python, folder / "local.hdf5", images, ROLES * batch, batches, step_seconds, megabytes)
    return rows


def _warm(folder: Path) -> None:
    """Reads all files once, so that every reader finds them in the page cache."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def _time(stream: Iterator, batches: int, images: int, step_seconds: float) -> tuple[float, float]:
    """Images per second without a step, and the share of time spent waiting with one."""
    next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    rate = batches * images / (time.perf_counter() - start)
    waited, start = 0.0, time.perf_counter()
    for _ in range(batches):
        asked = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - asked
        time.sleep(step_seconds)
    waiting = waited / (time.perf_counter() - start)
    stream.close()
    return rate, waiting


def _torch(
    python: str, path: Path, images: int, per_item: int, items: int, step_seconds: float, megabytes: float
) -> list[Throughput]:
    script = Path(__file__).with_name("torch_loader.py")
    command = [python, str(script), str(path), str(images), str(per_item), str(items), str(step_seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"PyTorch loader left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return []
    found = json.loads(done.stdout)
    rate = found["images_per_second"]
    return [Throughput("PyTorch DataLoader, HDF5, 4 workers", rate, rate * megabytes, found["waiting"])]
