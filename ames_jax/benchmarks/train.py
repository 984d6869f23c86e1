"""`python -m ames_jax.benchmark train`: steps of the release's recipe, beside the same step in plain PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.benchmarks import flops
from ames_jax.benchmarks.machine import describe, matmul_peak, median_seconds, peak_memory, random_model
from ames_jax.benchmarks.memory import reset_peak
from ames_jax.benchmarks.opponent import Opponent, compare, progress
from ames_jax.benchmarks.options import Shape, add_compute, check_positive, existing_python, use_devices
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.report.plain_tables import markdown
from ames_jax.runtime.devices import data_mesh
from ames_jax.runtime.errors import UserError
from ames_jax.training.pipeline import ROLES
from ames_jax.training.step import Recipe, TrainState, TripletArrays, make_step, make_teacher

STEPS = 100_000  # of the imagined run
# Relative. Bits near zero are steep in the surrogate, so float32 rounding shows more than in scores.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
HEADINGS = {
    "shape": "Q×T", "teacher": "teacher", "seconds": "s a step", "triplets_per_second": "triplets/s",
    "torch_triplets_per_second": "PyTorch triplets/s", "ratio": "ratio", "gflops": "GFLOP/s", "share": "of matmul peak",
    "peak_mb": "peak MB", "torch_peak_mb": "PyTorch peak MB", "difference": "loss differs by",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--triplets", type=int, default=100, help="triplets a batch, two pairs each (default: 100)")
    add("--descriptors", type=int, default=400, help="descriptors an image, which the teacher sees (default: 400)")
    add(
        "--teacher",
        choices=("both", "on", "off"),
        default="both",
        help="student of a teacher, or alone (default: both)",
    )
    add_compute(parser, "100x100,200x200")


def run(
    arguments: argparse.Namespace, student: AMESConfig | None = None, teacher: AMESConfig | None = None
) -> tuple[dict[str, Any], str]:
    """Measures every shape; the student is binary with the erf surrogate, as the release's, and the teacher is not."""
    check_positive(arguments, ["triplets", "descriptors", "repeats"])
    longest = max(max(shape) for shape in arguments.shapes)
    if longest > arguments.descriptors:
        raise UserError(f"--shapes asks for {longest} descriptors, but --descriptors={arguments.descriptors}")
    use_devices(arguments.devices)
    if arguments.triplets % jax.local_device_count():
        raise UserError(f"--triplets={arguments.triplets} is not divisible by {jax.local_device_count()} devices")
    opponent = Opponent(existing_python(arguments.torch_python))
    student = dataclasses.replace(student or AMESConfig(bits=128), binarizer="erf", dtype=arguments.dtype)
    teacher = dataclasses.replace(teacher or AMESConfig(), dtype=arguments.dtype)
    peak = matmul_peak(arguments.dtype)
    rows = []
    for shape in arguments.shapes:
        for one in {"both": (None, teacher), "on": (teacher,), "off": (None,)}[arguments.teacher]:
            progress(f"{shape[0]} × {shape[1]}, {'with' if one else 'without'} a teacher")
            rows.append(_row(arguments, student, one, opponent, shape, peak))
    facts = {**describe(), "dtype": arguments.dtype, "matmul_gflops": peak / 1e9, "torch": opponent.why}
    title = (
        f"{facts['devices']} × {facts['device']}, {arguments.dtype}; {arguments.triplets} triplets of "
        f"{arguments.descriptors} descriptors; 2048³ matrix product: {peak / 1e9:,.0f} GFLOP/s a device. Medians of "
        f"{arguments.repeats}, warm. PyTorch: {opponent.why}.\n\n"
    )
    return {**facts, "triplets": arguments.triplets, "rows": rows}, title + markdown(rows, HEADINGS)


def _row(
    arguments: argparse.Namespace,
    config: AMESConfig,
    teacher: AMESConfig | None,
    opponent: Opponent,
    shape: Shape,
    peak: float,
) -> dict[str, Any]:
    model, weights = random_model(config)
    guide, guide_weights = (None, {}) if teacher is None else random_model(teacher, seed=1)
    size = (arguments.triplets, arguments.descriptors, config.descriptor_width)
    random = np.random.default_rng(0)
    images = {role: random.standard_normal(size, np.float32) for role in ("anchor", "positive", "negative")}
    row: dict[str, Any] = {"shape": f"{shape[0]}×{shape[1]}", "teacher": "yes" if teacher else "no"}
    theirs = None
    if opponent.there:
        settings = {
            "config": dataclasses.asdict(config), "teacher": teacher and dataclasses.asdict(teacher), "lengths": shape,
            "dtype": config.dtype, "repeats": arguments.repeats, "total_steps": STEPS,
        }  # fmt: skip
        arrays = {f"param/{name}": array for name, array in weights.items()}
        arrays |= {f"teacher/{name}": array for name, array in guide_weights.items()} | images
        theirs = opponent.run("train", settings, arrays)
    ours = _Ours(model, guide, images, shape)
    first = ours.step()
    if theirs is not None:
        for name in ("loss", "gradient_norm"):
            expected = float(theirs[name])
            difference = compare(f"{name} of {row['shape']}", first[name] / expected, 1.0, TOLERANCE[config.dtype])
            row[{"loss": "difference"}.get(name, f"{name}_difference")] = difference
    ours.step()
    reset_peak()
    seconds = median_seconds(ours.step, arguments.repeats)
    work = 2 * arguments.triplets * flops.train_pair(config, *shape, teacher, arguments.descriptors)
    row |= {
        "seconds": seconds, "triplets_per_second": arguments.triplets / seconds, "gflops": work / seconds / 1e9,
        "share": work / seconds / (peak * jax.local_device_count()), "peak_mb": peak_memory() / 1e6,
        "images_per_second": ROLES * arguments.triplets / seconds, "gflop_per_step": work / 1e9,
    }  # fmt: skip
    if theirs is not None:
        rate = arguments.triplets / float(theirs["seconds"])
        row |= {"torch_triplets_per_second": rate, "ratio": row["triplets_per_second"] / rate}
        row["torch_peak_mb"] = float(theirs["peak_bytes"]) / 1e6
    return row


class _Ours:
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
        """One step; its metrics."""
        target = self._teacher(self._batch) if self._teacher else None
        self._state, metrics = self._step(self._state, self._batch, target, self._rows)
        return {name: float(value) for name, value in metrics.items()}
