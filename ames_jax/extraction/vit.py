"""The vision transformer of DINOv2, with registers or without (Oquab et al. 2023, Darcet et al. 2024), forward only.

Images enter as flattened patches, so that one compiled program serves every image shape of about the same number of
patches: the rest of a bucket is padding, which no token attends to.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.extraction.network_weights import (
    Parameters,
    Weights,
    check_names,
    count_blocks,
    fill,
    precision_of,
    weight_and_bias,
)

EPSILON = 1e-6
# Of the authors' networks, whose number of heads leaves no trace in the weights.
HEAD_WIDTH = 64
# Layers of a block: the authors' names and ours.
LAYERS = {
    "norm1": "norm1", "attn.qkv": "qkv", "attn.proj": "out",
    "norm2": "norm2", "mlp.fc1": "expand", "mlp.fc2": "contract",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape of the network; the defaults are ViT-B/14 with registers, `dinov2_vitb14_reg`.

    Attributes:
      width, depth, heads, mlp: of the transformer. patch: pixels of a patch's side.
      grid: side of the square of position embeddings. registers: register tokens, 0 for none.
      dtype: compute type; LayerNorm and softmax stay in float32.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    patch: int = 14
    grid: int = 37
    registers: int = 4
    dtype: str = "float32"

    @property
    def antialias(self) -> bool:
        """True if position embeddings are resized with antialiasing: the authors do so in their networks with registers."""
        return self.registers > 0


class ViTOutput(NamedTuple):
    """Final-norm tokens, float32: class_token [B, d], registers [B, R, d], patches [B, P, d] (padding rows are noise).

    middle [B, P, d]: patches earlier in the network, where they were asked for.
    """

    class_token: jax.Array
    registers: jax.Array
    patches: jax.Array
    middle: jax.Array | None = None


class ViT(nnx.Module):
    """`model(pixels, positions, valid)`; see `patches_of` and `positions_of` for what makes its input of an image."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        linear = functools.partial(nnx.Linear, rngs=rngs, dtype=config.dtype, precision=precision_of(config.dtype))
        self.embed = linear(3 * config.patch**2, config.width)
        normal = nnx.initializers.normal(0.02)
        self.class_token = nnx.Param(normal(rngs.params(), (config.width,)))
        self.registers = nnx.Param(normal(rngs.params(), (config.registers, config.width)))
        self.class_position = nnx.Param(normal(rngs.params(), (config.width,)))
        self.positions = nnx.Param(normal(rngs.params(), (config.grid, config.grid, config.width)))
        self.blocks = nnx.List(Block(config, rngs) for _ in range(config.depth))
        self.norm = nnx.LayerNorm(config.width, epsilon=EPSILON, rngs=rngs)

    def __call__(
        self, pixels: jax.Array, positions: jax.Array, valid: jax.Array, middle: int | None = None
    ) -> ViTOutput:
        """Tokens of B images.

        Args:
          pixels: float32 [B, P, 3 · patch²], normalised pixels of each patch, row by row, channels last.
          positions: float32 [B, P, d], position embedding of each patch.
          valid: bool [B, P], False for padding.
          middle: `ViTOutput.middle` is taken after so many blocks.
        """
        config, between = self.config, None
        patches = self.embed(pixels).astype(jnp.float32) + positions
        first = jnp.concatenate(
            [(self.class_token[...] + self.class_position[...])[None], self.registers[...]]
        )  # registers have no position
        first = jnp.broadcast_to(first[None], (len(pixels), *first.shape))
        tokens = jnp.concatenate([first, patches], axis=1).astype(config.dtype)
        valid = jnp.pad(valid, ((0, 0), (1 + config.registers, 0)), constant_values=True)
        start = 1 + config.registers
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens, valid)
            if number == middle:
                between = self.norm(tokens[:, start:].astype(jnp.float32))
        tokens = self.norm(tokens.astype(jnp.float32))
        return ViTOutput(tokens[:, 0], tokens[:, 1:start], tokens[:, start:], between)


class Block(nnx.Module):
    """Pre-norm attention and MLP; the authors' layer scales are folded into the two output projections."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs) -> None:
        linear = functools.partial(nnx.Linear, rngs=rngs, dtype=config.dtype, precision=precision_of(config.dtype))
        self.heads, self.dtype = config.heads, jnp.dtype(config.dtype)
        self.norm1 = nnx.LayerNorm(config.width, epsilon=EPSILON, rngs=rngs)
        self.qkv = linear(config.width, 3 * config.width)
        self.out = linear(config.width, config.width)
        self.norm2 = nnx.LayerNorm(config.width, epsilon=EPSILON, rngs=rngs)
        self.expand = linear(config.width, config.mlp)
        self.contract = linear(config.mlp, config.width)

    def __call__(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """Tokens [B, N, d] of which those with `valid` [B, N] are attended to."""
        batch, count, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens).astype(self.dtype))
        query, key, value = jnp.moveaxis(qkv.reshape(batch, count, 3, self.heads, -1), (2, 3), (0, 2))
        attended = attend(query, key, value, valid)
        tokens = tokens + self.out(jnp.moveaxis(attended, 1, 2).reshape(batch, count, width))
        hidden = self.expand(self.norm2(tokens).astype(self.dtype))
        return tokens + self.contract(jax.nn.gelu(hidden, approximate=False))


def attend(query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array) -> jax.Array:
    """Softmax attention of [B, H, N, h] over the keys with `valid` [B, N]; softmax in float32."""
    precision = precision_of(query.dtype)
    bias = jnp.where(valid, 0.0, jnp.finfo(jnp.float32).min)[:, None]
    query = query * query.shape[-1] ** -0.5

    def one_head(head: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, key, value = head  # [B, N, h]
        scores = jnp.einsum("brc,bkc->brk", query, key, precision=precision).astype(jnp.float32) + bias
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        # Divided at the end, where it is h numbers a row and not N.
        mixed = jnp.einsum("brk,bkc->brc", weights.astype(value.dtype), value, precision=precision)
        return (mixed / weights.sum(-1, keepdims=True)).astype(value.dtype)

    heads = tuple(jnp.moveaxis(x, 1, 0) for x in (query, key, value))
    # Head by head the scores stay in a CPU's cache, which halves the time; an accelerator wants all of the work at once.
    mixed = jax.lax.platform_dependent(
        heads, cpu=lambda heads: jax.lax.map(one_head, heads), default=jax.vmap(one_head)
    )
    return jnp.moveaxis(mixed, 0, 1)


def patches_of(images: Any, patch: int) -> Any:
    """[..., h · patch, w · patch, 3] → [..., h · w, patch² · 3], patches row by row; NumPy or JAX."""
    *batch, height, width, _ = images.shape
    split = images.reshape(*batch, height // patch, patch, width // patch, patch, 3).swapaxes(-4, -3)
    return split.reshape(*batch, -1, patch * patch * 3)


def positions_of(grid: np.ndarray, height: int, width: int, antialias: bool = True) -> np.ndarray:
    """Position embeddings [G, G, d] resized to [height · width, d] as `resizing_matrix` says."""
    if (height, width) == grid.shape[:2]:
        return grid.reshape(height * width, -1)
    rows = np.tensordot(resizing_matrix(grid.shape[0], height, antialias), grid, 1)
    both = np.einsum("wg,hgd->hwd", resizing_matrix(grid.shape[1], width, antialias), rows, optimize=True)
    return both.reshape(height * width, -1)


def resizing_matrix(size: int, wanted: int, antialias: bool = True) -> np.ndarray:
    """float32 [wanted, size] that resizes `size` values bicubically, as PyTorch does for DINOv2's authors.

    antialias: Keys' kernel with a = -1/2, widened where it shrinks. Otherwise a = -3/4, values repeated beyond the edge, and
      the scale (wanted + 0.1) / size: the authors' guard against rounding, which moves every sample a little.
    """
    a, step = (-0.5, size / wanted) if antialias else (-0.75, size / (wanted + 0.1))
    widening, beyond = (max(step, 1.0), 0) if antialias else (1.0, 2)
    taps = np.arange(-beyond, size + beyond)
    x = np.abs((taps + 0.5)[None] - ((np.arange(wanted) + 0.5) * step)[:, None]) / widening
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0)) @ np.eye(size)[np.clip(taps, 0, size - 1)]
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def vit_of(weights: Weights, heads: int | None = None, dtype: str = "float32", source: str = "weights") -> ViT:
    """The vision transformer of a DINOv2 checkpoint (names of its authors), with or without registers.

    Layer scales are folded in.

    Args:
      heads: of attention; by default as many of `HEAD_WIDTH` as fit.
      dtype: compute type. source: what an error names.

    Raises:
      UserError: listing every name that is missing or left over, or of another shape.
    """
    depth = count_blocks(weights, "blocks.{}.norm1.weight")
    layers = ["patch_embed.proj", "norm", *(f"blocks.{i}.{layer}" for i in range(depth) for layer in LAYERS)]
    names = ["cls_token", "pos_embed", *(name for layer in layers for name in weight_and_bias(layer))]
    names += [f"blocks.{i}.{scale}.gamma" for i in range(depth) for scale in ("ls1", "ls2")]
    names += ["register_tokens"] if "register_tokens" in weights else []
    check_names(weights, names, source, ignored="mask_token")
    embed = weights["patch_embed.proj.weight"]
    registers = weights.get("register_tokens", np.zeros((1, 0, len(embed)), np.float32))[0]
    positions = weights["pos_embed"][0]
    config = ViTConfig(
        width=len(embed),
        depth=depth,
        heads=heads or max(1, len(embed) // HEAD_WIDTH),
        mlp=len(weights["blocks.0.mlp.fc1.bias"]),
        patch=embed.shape[2],
        grid=round((len(positions) - 1) ** 0.5),
        registers=len(registers),
        dtype=dtype,
    )
    values: Parameters = {
        ("class_token",): weights["cls_token"][0, 0],
        ("registers",): registers,
        ("class_position",): positions[0],
        ("positions",): positions[1:].reshape(config.grid, config.grid, config.width),
        ("embed", "kernel"): embed.transpose(2, 3, 1, 0).reshape(-1, config.width),
        ("embed", "bias"): weights["patch_embed.proj.bias"],
        ("norm", "scale"): weights["norm.weight"],
        ("norm", "bias"): weights["norm.bias"],
    }
    for i in range(depth):
        values |= _block_values(weights, i)
    return fill(lambda: ViT(config, nnx.Rngs(0)), values, source)


def _block_values(weights: Weights, number: int) -> Parameters:
    values: Parameters = {}
    scales = {"attn.proj": weights[f"blocks.{number}.ls1.gamma"], "mlp.fc2": weights[f"blocks.{number}.ls2.gamma"]}
    for theirs, ours in LAYERS.items():
        weight, bias = (weights[name] for name in weight_and_bias(f"blocks.{number}.{theirs}"))
        scale = scales.get(theirs, np.float32(1))
        values["blocks", number, ours, "kernel" if weight.ndim == 2 else "scale"] = weight.T * scale
        values["blocks", number, ours, "bias"] = bias * scale
    return values
