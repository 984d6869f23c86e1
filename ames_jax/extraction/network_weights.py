"""Files of the networks' authors → our modules: every missing, left-over and mis-shaped name in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.data.safe_pickle import read_pickle
from ames_jax.extraction.detector import Detector
from ames_jax.extraction.resnet import ResNet, ResNetConfig
from ames_jax.extraction.vit import ViT, ViTConfig
from ames_jax.runtime.errors import UserError

Weights = Mapping[str, np.ndarray]
Arrays = dict[tuple[str | int, ...], np.ndarray]
Module = TypeVar("Module", bound=nnx.Module)

# Under which key a checkpoint keeps its weights: the release, CVNet's authors, others.
KEYS = ("state", "model_state", "state_dict", "model")
HEAD_WIDTH = 64
NORM_EPSILON = 1e-5
NORM = ("weight", "bias", "running_mean", "running_var")


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Name → float32 array of a PyTorch file; runs none of its code.

    Raises UserError, naming the file, where it is missing, damaged, or holds no weights.
    """
    content = read_pickle(path)
    for key in KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = content.items() if isinstance(content, Mapping) else ()
    arrays = {str(name): np.asarray(array, np.float32) for name, array in found if isinstance(array, np.ndarray)}
    if not arrays:
        raise UserError(f"{path}: holds no weights; expected a PyTorch checkpoint of a network")
    return arrays


def vit_of(weights: Weights, heads: int | None = None, dtype: str = "float32", source: str = "weights") -> ViT:
    """The vision transformer of a DINOv2 checkpoint (names of its authors), with or without registers.

    Layer scales are folded in.

    Args:
      heads: of attention, which leave no trace in the weights; by default as many of 64 as fit.
      dtype: compute type. source: what an error names.

    Raises:
      UserError: listing every name that is missing or left over, or of another shape.
    """
    depth = _count(weights, "blocks.{}.norm1.weight")
    names = ["cls_token", "pos_embed", *_pair("patch_embed.proj"), *_pair("norm")]
    names += ["register_tokens"] if "register_tokens" in weights else []
    for i in range(depth):
        parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        names += [name for part in parts for name in _pair(f"blocks.{i}.{part}")]
        names += [f"blocks.{i}.ls1.gamma", f"blocks.{i}.ls2.gamma"]
    weights = _exactly(weights, names, source, lambda name: name == "mask_token")
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    registers = weights.get("register_tokens", np.zeros((1, 0, width), np.float32))[0]
    positions = weights["pos_embed"][0]
    grid = round((len(positions) - 1) ** 0.5)
    embed = weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, width)
    arrays: Arrays = {
        ("class_token",): weights["cls_token"][0, 0], ("registers",): registers,
        ("class_position",): positions[0], ("positions",): positions[1:].reshape(grid, grid, width),
        ("embed", "kernel"): embed, ("embed", "bias"): weights["patch_embed.proj.bias"],
        ("norm", "scale"): weights["norm.weight"], ("norm", "bias"): weights["norm.bias"],
    }  # fmt: skip
    for i in range(depth):
        arrays |= _vit_block(weights, f"blocks.{i}.", ("blocks", i))
    config = ViTConfig(
        width, depth, heads or max(1, width // HEAD_WIDTH), len(weights["blocks.0.mlp.fc1.bias"]), patch, grid,
        len(registers), dtype,
    )  # fmt: skip
    return _filled(lambda: ViT(config, nnx.Rngs(0)), arrays, source)


def _vit_block(weights: Weights, theirs: str, ours: tuple[str | int, ...]) -> Arrays:
    arrays: Arrays = {}
    for norm in ("norm1", "norm2"):
        arrays[(*ours, norm, "scale")] = weights[f"{theirs}{norm}.weight"]
        arrays[(*ours, norm, "bias")] = weights[f"{theirs}{norm}.bias"]
    scales = {"attn.proj": weights[f"{theirs}ls1.gamma"], "mlp.fc2": weights[f"{theirs}ls2.gamma"]}
    for name, path in (("attn.qkv", "qkv"), ("attn.proj", "out"), ("mlp.fc1", "expand"), ("mlp.fc2", "contract")):
        scale = scales.get(name, np.float32(1))
        arrays[(*ours, path, "kernel")] = weights[f"{theirs}{name}.weight"].T * scale
        arrays[(*ours, path, "bias")] = weights[f"{theirs}{name}.bias"] * scale
    return arrays


def resnet_of(weights: Weights, dtype: str = "float32", source: str = "weights") -> ResNet:
    """The ResNet of a CVNet checkpoint (names of its authors, below any prefix); batch norms are folded in.

    A checkpoint with a second, momentum network beside `encoder_q` gives the latter. Arguments and errors as `vit_of`.
    """
    weights = _below_prefix(weights, "stem.conv.weight", prefer="encoder_q")
    convolutions = {"stem.conv": ("stem.bn", ("stem",))}
    depths = [_count(weights, f"s{s}.b{{}}.f.a.weight", first=1) for s in range(1, 5)]
    for s, depth in enumerate(depths):
        for b in range(depth):
            block, ours = f"s{s + 1}.b{b + 1}", ("stages", s, b)
            if b == 0:
                convolutions[f"{block}.proj"] = (f"{block}.bn", (*ours, "project"))
            for letter, path in (("a", "reduce"), ("b", "spatial"), ("c", "expand")):
                convolutions[f"{block}.f.{letter}"] = (f"{block}.f.{letter}_bn", (*ours, path))
    names = [f"{conv}.weight" for conv in convolutions]
    names += [f"{norm}.{part}" for norm, _ in convolutions.values() for part in NORM]
    weights = _exactly(
        weights, [*names, "head.pool.p", *_pair("head.fc")], source, lambda name: name.endswith("num_batches_tracked")
    )
    arrays: Arrays = {("power",): weights["head.pool.p"]}
    arrays |= {("fc", "kernel"): weights["head.fc.weight"].T, ("fc", "bias"): weights["head.fc.bias"]}
    for conv, (norm, path) in convolutions.items():
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + NORM_EPSILON)
        arrays[(*path, "kernel")] = weights[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
        arrays[(*path, "bias")] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    stages = range(1, 5)
    config = ResNetConfig(
        tuple(depths), tuple(len(weights[f"s{s}.b1.proj.weight"]) for s in stages),
        tuple(len(weights[f"s{s}.b1.f.a.weight"]) for s in stages), len(weights["stem.conv.weight"]),
        len(weights["head.fc.bias"]), dtype,
    )  # fmt: skip
    return _filled(lambda: ResNet(config, nnx.Rngs(0)), arrays, source)


def detector_of(weights: Weights, source: str = "weights") -> Detector:
    """The detector of a release `*_detector.pt`; errors as `vit_of`."""
    names = [*_pair("conv1"), *(f"bn.{part}" for part in NORM), *_pair("conv2")]
    weights = _exactly(weights, names, source, lambda name: name.endswith("num_batches_tracked"))
    arrays: Arrays = {
        ("project", "kernel"): weights["conv1.weight"][:, :, 0, 0].T, ("project", "bias"): weights["conv1.bias"],
        ("norm", "scale"): weights["bn.weight"], ("norm", "bias"): weights["bn.bias"],
        ("norm", "mean"): weights["bn.running_mean"], ("norm", "var"): weights["bn.running_var"],
        ("weigh", "kernel"): weights["conv2.weight"][:, :, 0, 0].T, ("weigh", "bias"): weights["conv2.bias"],
    }  # fmt: skip
    return _filled(lambda: Detector(len(weights["conv1.bias"]), nnx.Rngs(0)), arrays, source)


def detector_weights(detector: Detector) -> dict[str, np.ndarray]:
    """The detector under the release's names and in its layout; `detector_of` gives back the same."""
    project, norm, weigh = detector.project, detector.norm, detector.weigh
    weights = {
        "conv1.weight": project.kernel[...].T[:, :, None, None], "conv1.bias": project.bias[...],
        "bn.weight": norm.scale[...], "bn.bias": norm.bias[...], "bn.running_mean": norm.mean[...],
        "bn.running_var": norm.var[...], "conv2.weight": weigh.kernel[...].T[:, :, None, None],
        "conv2.bias": weigh.bias[...],
    }  # fmt: skip
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}


def _pair(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]


def _count(weights: Weights, pattern: str, first: int = 0) -> int:
    number = first
    while pattern.format(number) in weights:
        number += 1
    return max(1, number - first)


def _below_prefix(weights: Weights, name: str, prefer: str) -> Weights:
    prefixes = [found.removesuffix(name) for found in weights if found.endswith(name)]
    prefixes.sort(key=lambda prefix: (prefer not in prefix, len(prefix)))
    if not prefixes:
        return weights
    return {n.removeprefix(prefixes[0]): array for n, array in weights.items() if n.startswith(prefixes[0])}


def _exactly(weights: Weights, names: Iterable[str], source: str, ignored: Callable[[str], bool]) -> Weights:
    """The weights, of which none must be missing and none left over."""
    expected = set(names)
    faults = [f"missing {name}" for name in sorted(expected - weights.keys())]
    faults += [f"unknown {name}" for name in sorted(weights.keys() - expected) if not ignored(name)]
    _refuse(faults, source)
    return weights


def _refuse(faults: list[str], source: str) -> None:
    if faults:
        shown = "; ".join(faults[:8]) + ("; …" if len(faults) > 8 else "")
        raise UserError(f"{source}: the weights do not fit the network ({len(faults)} faults): {shown}")


def _filled(make: Callable[[], Module], arrays: Arrays, source: str) -> Module:
    graph, state = nnx.split(nnx.eval_shape(make))
    filled, faults = [], []
    for path, slot in nnx.to_flat_state(state):
        array = arrays[tuple(path)]
        if array.shape != slot.shape:
            faults.append(f"{'/'.join(map(str, path))} has shape {array.shape}, expected {slot.shape}")
        else:
            filled.append((path, slot.replace(jnp.asarray(array, jnp.float32))))
    _refuse(faults, source)
    return nnx.merge(graph, nnx.from_flat_state(filled))
