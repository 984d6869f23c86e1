"""CVNet (Lee et al., CVPR 2022): its ResNet, forward only, and the backbone `cvnet`, stage-3 features through the release's
detector and GeM global descriptors at three scales.

Images of different sizes share one compiled program: they lie in the corner of a larger frame, and what a convolution
would see beyond an image's own edge is set to zero, as its padding is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.extraction.images import resize, shrink
from ames_jax.extraction.network import Arrays, NetworkBackbone, standardised
from ames_jax.extraction.network_weights import (
    Parameters,
    Weights,
    check_names,
    count_blocks,
    fill,
    precision_of,
    read_weights,
    weight_and_bias,
)
from ames_jax.runtime.errors import UserError

GEM_FLOOR = 1e-6
NORM_EPSILON = 1e-5
# Of stage 3, in pixels of the network's input: receptive field 291, stride 16, padding 145, so that the field of
# position i is centred on pixel 16 · i.
STRIDE = 16
# Sides are padded to multiples of it; all images of one padded shape share a compiled program.
BUCKET = 64


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Shape of the network; the defaults are CVNet's ResNet-101.

    Attributes:
      depths, widths, inner: blocks, output channels and bottleneck channels of the four stages.
      stem: channels of the first convolution. global_width: G, values of the global descriptor.
      dtype: compute type of the convolutions.
    """

    depths: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    inner: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64
    global_width: int = 2048
    dtype: str = "float32"


class ResNetOutput(NamedTuple):
    """float32: local [B, h, w, C], output of stage 3 before its last ReLU (noise beyond an image's own h and w), and
    global_descriptor [B, G], not normalised."""

    local: jax.Array
    global_descriptor: jax.Array


class ResNet(nnx.Module):
    """`model(pixels, sizes)`: normalised pixels in BGR order, batch normalisation folded into the convolutions."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.stem = Conv(7, 2, 3, config.stem, dtype, rngs)
        self.stages = nnx.List()
        width = config.stem
        for number, (depth, out, inner) in enumerate(zip(config.depths, config.widths, config.inner)):
            stride = 1 if number == 0 else 2
            blocks = [
                Block(stride if i == 0 else 1, width if i == 0 else out, inner, out, dtype, rngs) for i in range(depth)
            ]
            self.stages.append(nnx.List(blocks))
            width = out
        self.power = nnx.Param(jnp.full((1,), 3.0))
        self.fc = nnx.Linear(width, config.global_width, precision=jax.lax.Precision.HIGHEST, rngs=rngs)

    def __call__(self, pixels: jax.Array, sizes: jax.Array) -> ResNetOutput:
        """pixels: float32 [B, H, W, 3]; sizes: int32 [B, 2], each image's own height and width."""
        inside = [_inside(_halved(sizes, times), pixels.shape[1:3], times) for times in range(6)]
        x = jnp.where(inside[0], pixels, 0).astype(self.config.dtype)
        x = jnp.where(inside[1], jax.nn.relu(self.stem(x)), 0)
        x = jax.lax.reduce_window(
            x, jnp.zeros((), x.dtype), jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )  # nothing is negative after the ReLU, so zeros do for the usual -∞ beyond the edge
        for number, stage in enumerate(self.stages):
            before = inside[max(2, number + 1)]
            for block in stage:
                total = block(x, before)
                x, before = jax.nn.relu(total), inside[number + 2]
            if number == 2:
                local = total
        return ResNetOutput(local.astype(jnp.float32), self._pool(x.astype(jnp.float32), inside[5]))

    def _pool(self, x: jax.Array, inside: jax.Array) -> jax.Array:
        """GeM: the mean of x^p over the image's own positions, to the power of 1 / p; then the linear layer."""
        power = self.power[...]
        total = jnp.sum(jnp.where(inside, jnp.maximum(x, GEM_FLOOR) ** power[None, None, None], 0), (1, 2))
        mean = total / jnp.sum(inside, (1, 2))
        return self.fc(mean ** (1 / power[None]))


class Block(nnx.Module):
    """Bottleneck block; gives the sum before its ReLU. The stride is in the 3 × 3 convolution."""

    def __init__(self, stride: int, width: int, inner: int, out: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.project = Conv(1, stride, width, out, dtype, rngs) if width != out or stride > 1 else None
        self.reduce = Conv(1, 1, width, inner, dtype, rngs)
        self.spatial = Conv(3, stride, inner, inner, dtype, rngs)
        self.expand = Conv(1, 1, inner, out, dtype, rngs)

    def __call__(self, x: jax.Array, inside: jax.Array) -> jax.Array:
        """x [B, h, w, C]; inside: bool [B, h, w, 1], the image's own positions in x."""
        residual = x if self.project is None else self.project(x)
        x = jnp.where(inside, jax.nn.relu(self.reduce(x)), 0)
        return residual + self.expand(jax.nn.relu(self.spatial(x)))


class Conv(nnx.Module):
    """Convolution with bias, padded by half its side; 1 × 1 as a matrix product, which is faster on CPU."""

    def __init__(self, side: int, stride: int, width: int, out: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.stride, self.dtype = stride, dtype
        initial = nnx.initializers.he_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (side, side, width, out)))
        self.bias = nnx.Param(jnp.zeros(out))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H / stride⌉, ⌈W / stride⌉, out]."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        precision = precision_of(self.dtype)
        side, stride = kernel.shape[0], self.stride
        if side == 1:
            x = jnp.matmul(x[:, ::stride, ::stride], kernel[0, 0], precision=precision)
        else:
            padding = [(side // 2, side // 2)] * 2
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
            )
        return x + bias[None, None, None]


def _halved(sizes: jax.Array, times: int) -> jax.Array:
    return functools.reduce(lambda found, _: (found + 1) // 2, range(times), sizes)


def _inside(sizes: jax.Array, frame: tuple[int, int], times: int) -> jax.Array:
    """bool [B, h, w, 1]: positions inside images of `sizes` [B, 2] in a frame that was halved `times` times."""
    height, width = (int(_halved(side, times)) for side in frame)
    rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    return (rows < sizes[:, 0, None, None, None]) & (columns < sizes[:, 1, None, None, None])


def resnet_of(weights: Weights, dtype: str = "float32", source: str = "weights") -> ResNet:
    """The ResNet of a CVNet checkpoint (names of its authors, below any prefix); batch norms are folded in.

    A checkpoint that holds a momentum network beside `encoder_q` gives `encoder_q`. Arguments and errors as `vit_of`.
    """
    weights = _below_prefix(weights)
    stages = range(1, 5)
    depths = tuple(count_blocks(weights, f"s{s}.b{{}}.f.a.weight", first=1) for s in stages)
    # The authors' convolution → their batch norm behind it, and our path.
    convolutions = {"stem.conv": ("stem.bn", ("stem",))}
    for stage, depth in zip(stages, depths):
        for number in range(depth):
            block, ours = f"s{stage}.b{number + 1}", ("stages", stage - 1, number)
            if number == 0:
                convolutions[f"{block}.proj"] = (f"{block}.bn", (*ours, "project"))
            for letter, path in (("a", "reduce"), ("b", "spatial"), ("c", "expand")):
                convolutions[f"{block}.f.{letter}"] = (f"{block}.f.{letter}_bn", (*ours, path))
    names = ["head.pool.p", *weight_and_bias("head.fc"), *(f"{name}.weight" for name in convolutions)]
    names += [name for norm, _ in convolutions.values() for name in weight_and_bias(norm)]
    names += [f"{norm}.running_{part}" for norm, _ in convolutions.values() for part in ("mean", "var")]
    check_names(weights, names, source, ignored="num_batches_tracked")
    values: Parameters = {
        ("power",): weights["head.pool.p"],
        ("fc", "kernel"): weights["head.fc.weight"].T,
        ("fc", "bias"): weights["head.fc.bias"],
    }
    for name, (norm, path) in convolutions.items():
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + NORM_EPSILON)
        values[*path, "kernel"] = weights[f"{name}.weight"].transpose(2, 3, 1, 0) * scale
        values[*path, "bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    config = ResNetConfig(
        depths=depths,
        widths=tuple(len(weights[f"s{stage}.b1.proj.weight"]) for stage in stages),
        inner=tuple(len(weights[f"s{stage}.b1.f.a.weight"]) for stage in stages),
        stem=len(weights["stem.conv.weight"]),
        global_width=len(weights["head.fc.bias"]),
        dtype=dtype,
    )
    return fill(lambda: ResNet(config, nnx.Rngs(0)), values, source)


def _below_prefix(weights: Weights) -> Weights:
    name = "stem.conv.weight"
    prefixes = [found.removesuffix(name) for found in weights if found.endswith(name)]
    prefixes.sort(key=lambda prefix: ("encoder_q" not in prefix, len(prefix)))
    if not prefixes:
        return weights
    return {n.removeprefix(prefixes[0]): array for n, array in weights.items() if n.startswith(prefixes[0])}


class CvnetBackbone(NetworkBackbone):
    """The longer side is at most `max_side` at scale 1."""

    name, global_name = "cvnet", "CVNet GeM, three scales"
    scales = (0.7071, 1.0, 1.4142)
    default_side = 1024
    channels = "BGR"

    @staticmethod
    def weights_file(path: Path | None) -> Path:
        """The given file: it cannot be downloaded here."""
        if path is None:
            raise UserError(
                "the backbone cvnet needs --weights=CVNet_R101.pyth (training: --config.weights), which its authors "
                "publish at https://github.com/sungonce/CVNet"
            )
        return path

    @classmethod
    def read_network(cls, path: Path | None, dtype: str) -> ResNet:
        """The network in the given file."""
        path = cls.weights_file(path)
        return resnet_of(read_weights(path), dtype, str(path))

    @staticmethod
    def widths(network: ResNet) -> tuple[int, int]:
        """Of stage 3 and of the pooled descriptor."""
        return network.config.widths[2], network.config.global_width

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Smaller images stay as they are."""
        return shrink(image, self.max_side)

    def inputs(self, image: np.ndarray, scale: float) -> Arrays:
        """pixels uint8 [H, W, 3], padded, and size int32 [2], the height and width without padding."""
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        pixels = np.pad(resize(image, height, width), ((0, -height % BUCKET), (0, -width % BUCKET), (0, 0)))
        rows, columns = (side // STRIDE for side in pixels.shape[:2])
        row, column = np.divmod(np.arange(rows * columns), columns)
        centres = (np.stack([column, row], 1) * STRIDE + 0.5).astype(np.float32)
        own = np.float32([width, height])
        size = np.array([height, width], np.int32)
        return {"pixels": pixels, "size": size, "valid": (centres < own).all(1), "xy": centres / own}

    @staticmethod
    def features(network: ResNet, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """The stage-3 map and the pooled descriptors."""
        found = network(standardised(batch["pixels"], bgr=True), batch["size"])
        return found.local.reshape(len(found.local), -1, found.local.shape[-1]), found.global_descriptor

    @staticmethod
    def squares(network: ResNet, side: int) -> Callable[[jax.Array], Arrays]:
        """Without padding."""
        return lambda images: {"pixels": images, "size": jnp.full((len(images), 2), side, jnp.int32)}
