"""Training, from the disk to the step, beside PyTorch: `python -m ames_jax.benchmark data` and `benchmark train`.

`data` reads batches from each storage beside a DataLoader on the same HDF5; `train` makes steps of the release's recipe.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.benchmarks import flops
from ames_jax.benchmarks.evaluation_speed import write_hdf5
from ames_jax.benchmarks.flags import DataFlags, Shape, TrainFlags
from ames_jax.benchmarks.harness import Case, Harness, random_model
from ames_jax.benchmarks.measuring import read_times
from ames_jax.data.neighbours import Neighbours
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.shard_writing import write_shards
from ames_jax.data.shards import open_split
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.runtime.devices import data_mesh
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress
from ames_jax.training.pipeline import ROLES, TripletPipeline
from ames_jax.training.step import Recipe, TrainState, TripletArrays, make_step, make_teacher
from ames_jax.training.triplets import Triplets

STEPS = 100_000  # of the imagined run
# Bits near zero are steep in the surrogate, so float32 rounding shows more than in scores.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
LEAST_IMAGES = 50
READER_COLUMNS = {
    "reader": "reader",
    "images_per_second": "images/s",
    "megabytes_per_second": "MB/s (float16)",
    "ratio": "of PyTorch",
    "waiting": "share of time waiting",
}


def measure_steps(
    flags: TrainFlags, student: AMESConfig | None = None, teacher: AMESConfig | None = None
) -> dict[str, Any]:
    """Measures every shape; the student is binary with the erf surrogate, as the release's, and the teacher is not."""
    longest = max(max(shape) for shape in flags.shapes)
    if longest > flags.descriptors:
        raise UserError(f"--shapes asks for {longest} descriptors, but --descriptors={flags.descriptors}")
    harness = Harness(flags, "triplets", flags.dtype, flags.repeats)
    if flags.triplets % jax.local_device_count():
        raise UserError(f"--triplets={flags.triplets} is not divisible by {jax.local_device_count()} devices")
    student = dataclasses.replace(student or AMESConfig(bits=128), binarizer="erf", dtype=flags.dtype)
    teacher = dataclasses.replace(teacher or AMESConfig(), dtype=flags.dtype)
    guides = {"both": (None, teacher), "on": (teacher,), "off": (None,)}[flags.teacher]
    rows = [harness.row(_case(flags, student, guide, shape)) for shape in flags.shapes for guide in guides]
    columns = {"shape": "Q×T", "teacher": "teacher", "seconds": "seconds per step"}
    note = (
        f"Steps on {flags.triplets} triplets of {flags.descriptors} descriptors; loss and gradient norm are compared."
    )
    return harness.report(columns, rows, note, triplets=flags.triplets)


def _case(flags: TrainFlags, config: AMESConfig, teacher: AMESConfig | None, shape: Shape) -> Case:
    model, weights = random_model(config)
    guide, guide_weights = (None, {}) if teacher is None else random_model(teacher, seed=1)
    size, random = (flags.triplets, flags.descriptors, config.descriptor_width), np.random.default_rng(0)
    images = {role: random.standard_normal(size, np.float32) for role in ("anchor", "positive", "negative")}
    configs = {"config": dataclasses.asdict(config), "teacher": teacher and dataclasses.asdict(teacher)}
    arrays = {f"param/{name}": array for name, array in weights.items()} | images
    arrays |= {f"teacher/{name}": array for name, array in guide_weights.items()}
    return Case(
        row={"shape": f"{shape[0]}×{shape[1]}", "teacher": "yes" if teacher else "no"},
        ours=_Steps(model, guide, images, shape).step,
        units=flags.triplets,
        job=("train", {**configs, "lengths": shape, "total_steps": STEPS}, arrays),
        tolerance=TOLERANCE,
        work=2 * flags.triplets * flops.train_pair(config, *shape, teacher, flags.descriptors),
        warm=2,
    )


class _Steps:
    """Our training on one batch that stays on the devices."""

    def __init__(self, model: AMES, teacher: AMES | None, images: dict[str, np.ndarray], shape: Shape) -> None:
        graph, params = nnx.split(model)
        # A step gives its state away, and so must not own the arrays of the model.
        params = jax.tree.map(jnp.copy, params)
        recipe = Recipe(steps=STEPS, buckets=tuple(sorted({*shape, *Recipe(1).buckets})))
        mesh = data_mesh(jax.local_devices())
        everywhere, split = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("data",)))
        self._state = jax.device_put(TrainState.create(params, recipe), everywhere)
        sides = {role: DescriptorSet(jax.device_put(values, split)) for role, values in images.items()}
        self._batch = TripletArrays(**sides, lengths=jax.device_put(np.array(shape, np.int32), everywhere))
        self._teacher = teacher and make_teacher(teacher, mesh=mesh)
        self._step, self._rows = make_step(graph, recipe, mesh), tuple(recipe.bucket(length) for length in shape)

    def step(self) -> dict[str, float]:
        """One step; its loss and the norm of its gradient."""
        target = self._teacher(self._batch) if self._teacher else None
        self._state, metrics = self._step(self._state, self._batch, target, self._rows)
        return {name: float(metrics[name]) for name in ("loss", "gradient_norm")}


def measure_reading(flags: DataFlags) -> dict[str, Any]:
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
    return harness.report(READER_COLUMNS, rows, *notes, step_seconds=flags.step, writing_megabytes_per_second=written)


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
