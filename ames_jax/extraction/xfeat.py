"""XFeat (Potje et al., CVPR 2024): 64-value descriptors at key points, fast enough for a processor core.

The network reads grey pixels and gives, for every 8 × 8 cell, a descriptor, its reliability, and 65 key point logits (one
for each pixel of the cell, and one for "none"). Key points are local maxima of their probability; a descriptor is read
between cells by bicubic interpolation. All as in the authors' code; batch normalisation is folded into the convolutions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import ExtractedImage, facts_seen
from ames_jax.extraction.images import resize
from ames_jax.extraction.network_weights import Parameters, Weights, check_names, fill, precision_of, read_weights
from ames_jax.runtime.cache import fetch_file
from ames_jax.runtime.cores import usable_cores

CELL, MULTIPLE = 8, 32  # pixels of a cell; what the sides of an image are divisible by
WIDTH = 64
THRESHOLD, WINDOW = 0.05, 5  # least probability of a key point, and side of the window that it is the maximum of
NORM_EPSILON = 1e-5
CUBIC = -0.75  # of the interpolation kernel
FILE, ADDRESS = "xfeat.pt", "https://raw.githubusercontent.com/verlab/accelerated_features/main/weights"
DESCRIPTORS, MAX_SIDE = 500, 640

# Name of each block → (channels in, channels out, side, stride) of its convolutions, each followed by a ReLU.
BLOCKS: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "block1": ((1, 4, 3, 1), (4, 8, 3, 2), (8, 8, 3, 1), (8, 24, 3, 2)),
    "block2": ((24, 24, 3, 1), (24, 24, 3, 1)),
    "block3": ((24, 64, 3, 2), (64, 64, 3, 1), (64, 64, 1, 1)),
    "block4": ((64, 64, 3, 2), (64, 64, 3, 1), (64, 64, 3, 1)),
    "block5": ((64, 128, 3, 2), (128, 128, 3, 1), (128, 128, 3, 1), (128, 64, 1, 1)),
    "block_fusion": ((64, 64, 3, 1), (64, 64, 3, 1)),
    "heatmap_head": ((64, 64, 1, 1), (64, 64, 1, 1)),
    "keypoint_head": ((64, 64, 1, 1), (64, 64, 1, 1), (64, 64, 1, 1)),
}
# The last convolution of some blocks has no ReLU: name in the authors' file → channels in and out.
LAST = {"skip1.1": (1, 24), "block_fusion.2": (64, 64), "heatmap_head.2": (64, 1), "keypoint_head.3": (64, 65)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class XFeatOutput:
    """float32: descriptors [B, h, w, 64] of length 1, peaks [B, 8 h, 8 w] (probability of a key point where it is a local
    maximum, else 0), reliability [B, h, w]; h and w count cells."""

    descriptors: jax.Array
    peaks: jax.Array
    reliability: jax.Array


class XFeat(nnx.Module):
    """`model(grey)`: float32 [B, H, W], any scale of values, H and W divisible by 32."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        def convolution(inputs: int, outputs: int, side: int = 1, stride: int = 1) -> nnx.Conv:
            pad = side // 2
            return nnx.Conv(
                inputs,
                outputs,
                (side, side),
                stride,
                padding=((pad, pad), (pad, pad)),
                precision=precision_of("float32"),
                rngs=rngs,
            )

        self.blocks = nnx.Dict({name: nnx.List([convolution(*c) for c in specs]) for name, specs in BLOCKS.items()})
        self.last = nnx.Dict({name.partition(".")[0]: convolution(*widths) for name, widths in LAST.items()})

    def __call__(self, grey: jax.Array) -> XFeatOutput:
        """Descriptors, key point peaks and reliability of every image."""
        mean, variance = grey.mean((1, 2), keepdims=True), grey.var((1, 2), keepdims=True)
        x = ((grey - mean) * jax.lax.rsqrt(variance + NORM_EPSILON))[..., None]
        batch, height, width, _ = x.shape
        quarter = x.reshape(batch, height // 4, 4, width // 4, 4, 1).mean((2, 4))
        deep = [self._block("block2", self._block("block1", x) + self.last["skip1"](quarter))]
        for name in ("block3", "block4", "block5"):
            deep.append(self._block(name, deep[-1]))
        cells = deep[1].shape
        merged = deep[1] + sum(jax.image.resize(y, cells, "bilinear") for y in deep[2:])
        features = self.last["block_fusion"](self._block("block_fusion", merged))
        reliability = jax.nn.sigmoid(self.last["heatmap_head"](self._block("heatmap_head", features)))[..., 0]
        norm = jnp.sqrt(jnp.sum(features * features, axis=-1, keepdims=True))
        return XFeatOutput(features / jnp.maximum(norm, 1e-12), self._peaks(x), reliability)

    def _block(self, name: str, x: jax.Array) -> jax.Array:
        for convolution in self.blocks[name]:
            x = jax.nn.relu(convolution(x))
        return x

    def _peaks(self, x: jax.Array) -> jax.Array:
        """The key point probabilities [B, H, W] where they are the largest of their window, else 0."""
        batch, height, width, _ = x.shape
        rows, columns = height // CELL, width // CELL
        cells = x.reshape(batch, rows, CELL, columns, CELL).transpose(0, 1, 3, 2, 4)
        logits = self.last["keypoint_head"](self._block("keypoint_head", cells.reshape(batch, rows, columns, -1)))
        of_pixels = jax.nn.softmax(logits, axis=-1)[..., :-1].reshape(batch, rows, columns, CELL, CELL)
        heat = of_pixels.transpose(0, 1, 3, 2, 4).reshape(batch, height, width)
        around = ((0, 0), (WINDOW // 2,) * 2, (WINDOW // 2,) * 2)
        largest = jax.lax.reduce_window(heat, -jnp.inf, jax.lax.max, (1, WINDOW, WINDOW), (1, 1, 1), around)
        return jnp.where((heat == largest) & (heat > THRESHOLD), heat, 0)


def xfeat_of(weights: Weights, source: str = "weights") -> XFeat:
    """The network of the authors' checkpoint; the matcher's refinement network is left out.

    Raises UserError listing every name that is missing or left over, or of another shape.
    """
    layers = [f"{block}.{i}.layer" for block, specs in BLOCKS.items() for i in range(len(specs))]
    norms = [f"{layer}.1.{part}" for layer in layers for part in ("running_mean", "running_var")]
    names = [
        *(f"{layer}.0.weight" for layer in layers),
        *norms,
        *(f"{n}.{p}" for n in LAST for p in ("weight", "bias")),
    ]
    known = {name: array for name, array in weights.items() if not name.startswith("fine_matcher.")}
    check_names(known, names, source, ignored="num_batches_tracked")
    values: Parameters = {}
    for block, specs in BLOCKS.items():
        for i in range(len(specs)):
            name = f"{block}.{i}.layer"
            scale = 1 / np.sqrt(weights[f"{name}.1.running_var"] + NORM_EPSILON)
            values["blocks", block, i, "kernel"] = weights[f"{name}.0.weight"].transpose(2, 3, 1, 0) * scale
            values["blocks", block, i, "bias"] = -weights[f"{name}.1.running_mean"] * scale
    for name in LAST:
        short = name.partition(".")[0]
        values["last", short, "kernel"] = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        values["last", short, "bias"] = weights[f"{name}.bias"]
    return fill(lambda: XFeat(nnx.Rngs(0)), values, source)


def key_points(
    descriptors: np.ndarray, peaks: np.ndarray, reliability: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` best key points of one image: (xy float32 [N, 2] in pixels, score [N], descriptors [N, 64]).

    Arguments are one image of an `XFeatOutput`. Score: probability of the key point times the reliability there. Best
    first; N is smaller where an image has fewer.
    """
    y, x = np.nonzero(peaks)
    height, width = peaks.shape
    # The authors place pixel x of W at x / (W − 1) of the cells' map; its cells' centres lie half a cell inside.
    at = [place / (side - 1) * cells - 0.5 for place, side, cells in zip((y, x), (height, width), reliability.shape)]
    # A row and a column of zeros: what the authors' rounding puts beyond the edge has no score.
    bordered = np.pad(peaks, ((0, 1), (0, 1)))
    score = bordered[_nearest(y, height), _nearest(x, width)] * _sample(reliability[..., None], at, _linear)[:, 0]
    best = np.argsort(-score, kind="stable")[:count]
    best = best[score[best] > 0]
    found = _sample(descriptors, [place[best] for place in at], _cubic)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return np.stack([x[best], y[best]], axis=1).astype(np.float32), score[best], found


def _nearest(place: np.ndarray, side: int) -> np.ndarray:
    return np.rint(place.astype(np.float32) / np.float32(side - 1) * np.float32(side) - np.float32(0.5)).astype(int)


def _linear(fraction: np.ndarray) -> tuple[range, list[np.ndarray]]:
    return range(2), [1 - fraction, fraction]


def _cubic(fraction: np.ndarray) -> tuple[range, list[np.ndarray]]:
    def near(t: np.ndarray) -> np.ndarray:
        return ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC

    return range(-1, 3), [far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)]


def _sample(values: np.ndarray, at: list[np.ndarray], kernel: Callable) -> np.ndarray:
    """values [h, w, C] at n fractional places (rows, columns), [n, C]; zeros beyond the edge."""
    whole = [np.floor(place).astype(int) for place in at]
    taps = [kernel((place - floor).astype(np.float32)) for place, floor in zip(at, whole)]
    total = np.zeros((len(at[0]), values.shape[-1]), np.float32)
    for i, row_weight in zip(*taps[0]):
        for j, column_weight in zip(*taps[1]):
            rows, columns = whole[0] + i, whole[1] + j
            inside = (rows >= 0) & (rows < values.shape[0]) & (columns >= 0) & (columns < values.shape[1])
            weight = row_weight * column_weight * inside
            total += weight[:, None] * values[np.where(inside, rows, 0), np.where(inside, columns, 0)]
    return total


class XFeatBackbone:
    """XFeat of grey pixels; see `Backbone`. It has no global descriptor: `backbones.open_backbone` joins one to it."""

    name, width, together = "xfeat", WIDTH, 32
    global_width, global_name = 0, ""

    @classmethod
    def open(
        cls, *, weights: Path | None = None, descriptors: int = DESCRIPTORS, max_side: int = MAX_SIDE
    ) -> XFeatBackbone:
        """Reads the given file, or the authors', downloaded once; raises UserError where it does not fit."""
        file = weights or fetch_file(FILE, (ADDRESS,), read_weights)
        backbone = cls(xfeat_of(read_weights(file), str(file)), descriptors=descriptors, max_side=max_side)
        backbone.settings["weights"] = weights and str(weights)
        backbone.files = {"weights": file}
        return backbone

    @property
    def seen(self) -> dict[str, Any]:
        """See `Backbone`."""
        return facts_seen(self.max_side, "grey", self.files)

    def __init__(self, network: XFeat, *, descriptors: int = DESCRIPTORS, max_side: int = MAX_SIDE) -> None:
        self.descriptors, self.max_side = descriptors, max_side
        self.files: dict[str, Path | None] = {}
        self.settings: dict[str, Any] = {"name": self.name, "descriptors": descriptors, "max_side": max_side}
        graph, self._parameters = nnx.split(network)
        self._function = jax.jit(lambda parameters, grey: nnx.merge(graph, parameters)(grey))
        self._threads = ThreadPoolExecutor(usable_cores(), "xfeat")

    def fit(self, image: np.ndarray) -> np.ndarray:
        """The longer side `max_side`, up or down, and both multiples of 32: few shapes, so few compiled programs."""
        scale = self.max_side / max(image.shape[:2]) / MULTIPLE
        height, width = (max(1, round(side * scale)) * MULTIPLE for side in image.shape[:2])
        return resize(image, height, width)

    def extract(self, images: Sequence[np.ndarray]) -> list[ExtractedImage]:
        """See `Backbone.extract`; key points of one image are read while the network sees another."""
        return list(self._threads.map(self._one, images))

    def _one(self, image: np.ndarray) -> ExtractedImage:
        pixels = self.fit(image)
        grey = pixels.astype(np.float32).mean(axis=2)[None] / 255
        found = jax.device_get(self._function(self._parameters, grey))
        xy, score, features = key_points(found.descriptors[0], found.peaks[0], found.reliability[0], self.descriptors)
        places = ((xy + 0.5) / np.array(pixels.shape[1::-1])).astype(np.float32)
        local = DescriptorSet(features, None, places, np.ones(len(score), np.float32), score.astype(np.float32))
        return ExtractedImage(local, np.zeros(0, np.float32))
