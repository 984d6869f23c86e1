"""`python -m ames_jax.benchmark extract`: images a second of SIFT, and of DINOv2's ViT beside the same network in PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.benchmarks.machine import describe, median_seconds
from ames_jax.benchmarks.opponent import Opponent, compare, progress
from ames_jax.benchmarks.options import add_common, check_positive, existing_python, whole_numbers
from ames_jax.data.shards import open_split
from ames_jax.extraction.extracting import ExtractionJob, extract
from ames_jax.extraction.keypoints import SIFT_WIDTH
from ames_jax.extraction.listing import ImageFiles, list_images
from ames_jax.extraction.sift import MAX_SIDE, SiftBackbone, SiftStatistics
from ames_jax.extraction.vit import ViT, ViTConfig, patches_of, positions_of, vit_of
from ames_jax.report.plain_tables import markdown
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError

CENTRES = 64
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
HEADINGS = {
    "work": "work", "images_per_second": "images/s", "torch_images_per_second": "PyTorch images/s", "ratio": "ratio",
    "difference": "tokens differ by", "descriptors": "descriptors an image",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--images", type=Path, help="pictures for SIFT, a folder or a list; by default drawn ones of 640 × 480")
    add("--pictures", type=int, default=64, help="pictures for SIFT at most (default: 64)")
    add("--side", type=whole_numbers, default=[518], help="sides of the ViT's square images, comma list (default: 518)")
    add("--batch", type=int, help="images of the ViT at a time; by default 1 on CPU, 8 elsewhere")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type of both (default: float32)")
    add("--torch-compile", action="store_true", help="torch.compile the PyTorch model")
    add("--repeats", type=int, default=3, help="timings of which the median is taken (default: 3)")
    add_common(parser)


def run(arguments: argparse.Namespace, config: ViTConfig | None = None) -> tuple[dict[str, Any], str]:
    """Measures both; `config` is the network (default: ViT-B/14 with registers)."""
    check_positive(arguments, ["pictures", "side", "repeats", *(["batch"] if arguments.batch else [])])
    config = dataclasses.replace(config or ViTConfig(), dtype=arguments.dtype)
    for side in arguments.side:
        if side % config.patch:
            raise UserError(f"--side={side}: the network takes multiples of {config.patch}, e.g. 518")
    opponent = Opponent(existing_python(arguments.torch_python))
    progress("SIFT")
    rows = [_sift(arguments)]
    for side in arguments.side:
        progress(f"ViT, {side} px")
        rows.append(_vit(arguments, dataclasses.replace(config, grid=side // config.patch), opponent))
    facts = {**describe(), "dtype": arguments.dtype, "cores": usable_cores(), "torch": opponent.why}
    title = (
        f"{facts['devices']} × {facts['device']}, {facts['cores']} cores, ViT in {arguments.dtype} with random weights; "
        f"medians of {arguments.repeats}, warm. SIFT: from files to what `extract` writes, on all cores. "
        f"PyTorch: {opponent.why}.\n\n"
    )
    return {**facts, "rows": rows}, title + markdown(rows, HEADINGS)


def _sift(arguments: argparse.Namespace) -> dict[str, Any]:
    """From image files to the data set that `extract` writes."""
    random = np.random.default_rng(0)
    # The time does not depend on the values of the statistics.
    statistics = SiftStatistics.learn(random.integers(0, 255, (CENTRES * 4, SIFT_WIDTH)).astype(np.uint8), CENTRES)
    with tempfile.TemporaryDirectory(prefix="ames_jax_benchmark_") as folder:
        files = _pictures(Path(folder), arguments.images, arguments.pictures)
        backbone = SiftBackbone(statistics)
        seconds = []
        for i in range(arguments.repeats):
            job = ExtractionJob(images=files, backbone=backbone, root=Path(folder) / f"out{i}")
            start = time.perf_counter()
            extract(job)
            seconds.append(time.perf_counter() - start)
        found = sum(int(record.descriptors.valid.sum()) for record in open_split(job.root, job.split))
    return {
        "work": f"SIFT, {MAX_SIDE} px", "images_per_second": len(files) / float(np.median(seconds)),
        "descriptors": found / len(files),
    }  # fmt: skip


def _pictures(folder: Path, images: Path | None, count: int) -> ImageFiles:
    if images is not None:
        found = list_images(images)
        return dataclasses.replace(found, files=found.files[:count])
    import cv2

    for i in range(count):
        cv2.imwrite(str(folder / f"{i:04d}.jpg"), dead_leaves(i))
    return list_images(folder)


def _vit(arguments: argparse.Namespace, config: ViTConfig, opponent: Opponent) -> dict[str, Any]:
    weights = random_weights(config)
    batch = arguments.batch or (1 if jax.default_backend() == "cpu" else 8)
    images = np.random.default_rng(1).standard_normal((batch, *[config.grid * config.patch] * 2, 3), np.float32)
    row: dict[str, Any] = {"work": f"ViT, {config.grid * config.patch} px, {batch} at a time"}
    theirs = None
    if opponent.there:
        settings = {
            "config": dataclasses.asdict(config), "dtype": config.dtype, "repeats": arguments.repeats,
            "compile": arguments.torch_compile,
        }  # fmt: skip
        arrays = {f"param/{name}": array for name, array in weights.items()}
        theirs = opponent.run("extract", settings, {**arrays, "images": np.moveaxis(images, 3, 1)})
    network = vit_of(weights, config.heads, config.dtype)
    forward, inputs = _forward(network, images)
    tokens = forward(inputs)
    seconds = median_seconds(lambda: forward(inputs), arguments.repeats)
    row["images_per_second"] = batch / seconds
    if theirs is not None:
        row["difference"] = compare(row["work"], np.asarray(tokens)[0], theirs["tokens"], TOLERANCE[config.dtype])
        row["torch_images_per_second"] = batch / float(theirs["seconds"])
        row["ratio"] = row["images_per_second"] / row["torch_images_per_second"]
    return row


def _forward(network: ViT, images: np.ndarray) -> tuple[Any, tuple[jax.Array, ...]]:
    """A compiled function from inputs on the device to all tokens [B, 1 + R + P, d], and the inputs."""
    graph, parameters = nnx.split(network)
    config = network.config
    patches = np.stack([patches_of(image, config.patch) for image in images])
    positions = positions_of(np.asarray(network.positions[...]), config.grid, config.grid)

    @jax.jit
    def forward(inputs: tuple[jax.Array, ...]) -> jax.Array:
        found = nnx.merge(graph, inputs[0])(*inputs[1:])
        return jnp.concatenate([found.class_token[:, None], found.registers, found.patches], axis=1)

    tiled = np.tile(positions[None], (len(images), 1, 1))
    return forward, jax.device_put((parameters, patches, tiled, np.ones(patches.shape[:2], bool)))


def random_weights(config: ViTConfig) -> dict[str, np.ndarray]:
    """Random weights of a ViT of this shape under the names of DINOv2's authors."""
    random, width, hidden = np.random.default_rng(0), config.width, config.mlp
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + config.grid**2, width),
        "register_tokens": (1, config.registers, width), "patch_embed.proj.weight": (width, 3, *[config.patch] * 2),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for i in range(config.depth):
        layers = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        for name, shape in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (width,)
    weights = {name: random.standard_normal(shape, np.float32) * 0.03 for name, shape in shapes.items()}
    scales = {name for name in weights if "norm" in name and name.endswith("weight")}
    return {name: np.float32(1) + array if name in scales else array for name, array in weights.items()}


def dead_leaves(seed: int, height: int = 480, width: int = 640) -> np.ndarray:
    """uint8 [height, width, 3]: overlapping discs of all sizes, which give about as many keypoints as a street view."""
    import cv2

    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.uint8)
    for radius in np.sort(3 / random.uniform(0.03, 1, 1500))[::-1]:
        centre = int(random.integers(width)), int(random.integers(height))
        cv2.circle(
            picture, centre, round(radius), [int(value) for value in random.integers(0, 255, 3)], -1, cv2.LINE_AA
        )
    noise = random.normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)
