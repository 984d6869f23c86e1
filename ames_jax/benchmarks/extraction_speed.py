"""`python -m ames_jax.benchmark extract`: images per second of SIFT, and of DINOv2's ViT beside the same in PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.benchmarks.flags import ExtractFlags
from ames_jax.benchmarks.harness import Case, Harness
from ames_jax.data.shards import open_split
from ames_jax.extraction.extracting import ExtractionJob, extract
from ames_jax.extraction.keypoints import SIFT_WIDTH
from ames_jax.extraction.listing import ImageFiles, list_images
from ames_jax.extraction.sift import MAX_SIDE, SiftBackbone, SiftStatistics
from ames_jax.extraction.vit import ViTConfig, patches_of, positions_of, vit_of
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError

CENTRES = 64
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}


def measure(flags: ExtractFlags, config: ViTConfig | None = None) -> dict[str, Any]:
    """Measures both; `config` is the network (default: ViT-B/14 with registers)."""
    config = dataclasses.replace(config or ViTConfig(), dtype=flags.dtype)
    for side in flags.side:
        if side % config.patch:
            raise UserError(f"--side={side}: the network takes multiples of {config.patch}, e.g. 518")
    harness = Harness(flags, "images", flags.dtype, flags.repeats)
    with tempfile.TemporaryDirectory(prefix="ames_jax_benchmark_") as folder:
        rows = [harness.row(_sift(_pictures(flags, Path(folder)), Path(folder)))]
    rows += [harness.row(_vit(flags, dataclasses.replace(config, grid=side // config.patch))) for side in flags.side]
    note = (
        f"SIFT: from files to what `extract` writes, on {usable_cores()} cores. ViT: random weights, tokens compared."
    )
    return harness.report({"work": "work", "descriptors": "descriptors per image"}, rows, note, cores=usable_cores())


def _pictures(flags: ExtractFlags, folder: Path) -> ImageFiles:
    if flags.images is not None:
        images = list_images(flags.images)
        return dataclasses.replace(images, files=images.files[: flags.pictures])
    for i in range(flags.pictures):
        cv2.imwrite(str(folder / f"{i:04d}.jpg"), dead_leaves(i))
    return list_images(folder)


def _sift(images: ImageFiles, folder: Path) -> Case:
    """From image files to the data set that `extract` writes."""
    # The time does not depend on the values of the statistics.
    histogram = np.random.default_rng(0).integers(0, 255, (CENTRES * 4, SIFT_WIDTH)).astype(np.uint8)
    backbone, numbers = SiftBackbone(SiftStatistics.learn(histogram, CENTRES)), itertools.count()

    def ours() -> dict[str, float]:
        job = ExtractionJob(images=images, backbone=backbone, root=folder / f"out{next(numbers)}")
        extract(job)
        if job.root.name != "out0":
            return {}
        records = open_split(job.root, job.split)
        return {"descriptors": sum(int(record.descriptors.valid.sum()) for record in records) / len(images)}

    return Case(row={"work": f"SIFT, {MAX_SIDE} px"}, ours=ours, units=len(images))


def _vit(flags: ExtractFlags, config: ViTConfig) -> Case:
    weights, side = random_weights(config), config.grid * config.patch
    batch = flags.batch or (1 if jax.default_backend() == "cpu" else 8)
    images = np.random.default_rng(1).standard_normal((batch, side, side, 3), np.float32)
    arrays = {f"param/{name}": array for name, array in weights.items()} | {"images": np.moveaxis(images, 3, 1)}
    network = vit_of(weights, config.heads, config.dtype)
    graph, parameters = nnx.split(network)
    patches = np.stack([patches_of(image, config.patch) for image in images])
    positions = positions_of(np.asarray(network.positions[...]), config.grid, config.grid)
    inputs = jax.device_put((patches, np.tile(positions[None], (batch, 1, 1)), np.ones(patches.shape[:2], bool)))

    @jax.jit
    def forward(parameters: nnx.State, inputs: tuple[jax.Array, ...]) -> jax.Array:
        """All tokens [B, 1 + R + P, d]."""
        tokens = nnx.merge(graph, parameters)(*inputs)
        return jnp.concatenate([tokens.class_token[:, None], tokens.registers, tokens.patches], axis=1)

    return Case(
        row={"work": f"ViT, {side} px, {batch} at a time"},
        ours=lambda: {"tokens": forward(parameters, inputs)[:1]},
        units=batch,
        job=("extract", {"config": dataclasses.asdict(config), "compile": flags.torch_compile}, arrays),
        tolerance=TOLERANCE,
    )


def random_weights(config: ViTConfig) -> dict[str, np.ndarray]:
    """Random weights of a ViT of this shape under the names of DINOv2's authors."""
    random, width, hidden = np.random.default_rng(0), config.width, config.mlp
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + config.grid**2, width),
        "register_tokens": (1, config.registers, width),
        "patch_embed.proj.weight": (width, 3, *[config.patch] * 2),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    outputs = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    outputs |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for i in range(config.depth):
        for name, shape in outputs.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (width,)
    weights = {name: random.standard_normal(shape, np.float32) * 0.03 for name, shape in shapes.items()}
    scales = {name for name in weights if "norm" in name and name.endswith("weight")}
    return {name: np.float32(1) + array if name in scales else array for name, array in weights.items()}


def dead_leaves(seed: int, height: int = 480, width: int = 640) -> np.ndarray:
    """uint8 [height, width, 3]: overlapping discs of all sizes, which give about as many keypoints as a street view."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.uint8)
    for radius in np.sort(3 / random.uniform(0.03, 1, 1500))[::-1]:
        centre = int(random.integers(width)), int(random.integers(height))
        colour = [int(value) for value in random.integers(0, 255, 3)]
        cv2.circle(picture, centre, round(radius), colour, -1, cv2.LINE_AA)
    noise = random.normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)
