"""`python -m ames_jax.benchmark train`: steps of the release's recipe, beside the same step in plain PyTorch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.benchmarks import flops
from ames_jax.benchmarks.flags import Shape, TrainFlags
from ames_jax.benchmarks.harness import Case, Harness, random_model
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.runtime.devices import data_mesh
from ames_jax.runtime.errors import UserError
from ames_jax.training.step import Recipe, TrainState, TripletArrays, make_step, make_teacher

STEPS = 100_000  # of the imagined run
# Bits near zero are steep in the surrogate, so float32 rounding shows more than in scores.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def measure(flags: TrainFlags, student: AMESConfig | None = None, teacher: AMESConfig | None = None) -> dict[str, Any]:
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
