"""DINOv2 as a backbone: patch tokens as local and the class token as global descriptors, one scale.

`dinov2` is the release's: ViT-B/14 with registers, 770 pixels, tokens through its detector. `dinov2_small`, `_base` and
`_large`, each also with `_reg`, are the authors' networks as they are, at 364 pixels and without a detector; with `_pooled`
at the end their global descriptor also holds the mean of the patch tokens, which photographs of one place share more of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.extraction.detector import Detector, unit_length
from ames_jax.extraction.images import resize
from ames_jax.extraction.network import Arrays, NetworkBackbone, standardised
from ames_jax.extraction.network_weights import read_weights
from ames_jax.extraction.vit import ViT, patches_of, positions_of, vit_of
from ames_jax.runtime.cache import fetch_file
from ames_jax.runtime.errors import UserError

# Images are padded to a multiple of so many patches, and all of one multiple share a compiled program.
BUCKET = 128
# Of the authors of DINOv2, who publish no checksum.
WEIGHTS = "dinov2_vitb14_reg4_pretrain.pth"
WEIGHTS_ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14"


# Of the variants: values of a token, blocks.
SIZES = {"small": (384, 12), "base": (768, 12), "large": (1024, 24)}
# Of a pooled global descriptor, measured on photographs (docs/photographs.md): the weight of the mean beside the class token's
# of 1, and the share of blocks after which its tokens are taken. Later ones say rather what a thing is than which one it is.
POOLED_WEIGHT, POOLED_DEPTH = 0.5, 0.75


class Dinov2Backbone(NetworkBackbone):
    """Each side becomes the nearest multiple of 14 after the longer has become `max_side`, up or down."""

    name, global_name = "dinov2", "DINOv2 class token"
    default_side = 770
    size: str | None = None  # of a variant
    pooled = False  # whether the global descriptor also holds the mean of the patch tokens
    file, address = WEIGHTS, WEIGHTS_ADDRESS

    @classmethod
    def open(cls, *, block: int | None = None, **options: Any) -> Dinov2Backbone:
        """As `NetworkBackbone.open`; block: tokens are taken after so many blocks, through the final norm (default: all)."""
        with_block = cls if block is None else type(cls.__name__, (cls,), {"block": block})
        backbone = super(Dinov2Backbone, with_block).open(**options)
        backbone.settings |= {} if block is None else {"block": block}
        return backbone

    block: int | None = None

    def __init__(self, network: ViT, detector: Detector | None, **settings: Any) -> None:
        super().__init__(network, detector, **settings)
        self._patch, grid = network.config.patch, np.asarray(network.positions[...])
        resized = functools.partial(positions_of, grid, antialias=network.config.antialias)
        self._positions = functools.lru_cache(maxsize=16)(resized)

    @classmethod
    def weights_file(cls, path: Path | None) -> Path:
        """The given file, or the authors', downloaded once."""
        return path or fetch_file(cls.file, (cls.address,), read_weights)

    @classmethod
    def read_network(cls, path: Path | None, dtype: str) -> ViT:
        """The given file, or the authors', downloaded once; raises UserError for another size or too few blocks."""
        path = cls.weights_file(path)
        network = vit_of(read_weights(path), dtype=dtype, source=str(path))
        found, expected = (network.config.width, network.config.depth), SIZES.get(cls.size or "")
        if expected and found != expected:
            raise UserError(
                f"{path}: {cls.name} has tokens of {expected[0]} values and {expected[1]} blocks, found {found[0]} and "
                f"{found[1]}; give the weights of that network, or name the backbone that they are of"
            )
        if cls.block is not None:
            if not 1 <= cls.block <= network.config.depth:
                raise UserError(f"--block={cls.block}: {cls.name} has blocks 1 to {network.config.depth}")
            network.blocks = nnx.List(list(network.blocks)[: cls.block])
        return network

    @classmethod
    def widths(cls, network: ViT) -> tuple[int, int]:
        """Of a patch token and of the global descriptor."""
        return network.config.width, network.config.width * (2 if cls.pooled else 1)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Each side a multiple of the patch's, at least one patch."""
        scale = self.max_side / max(image.shape[:2]) / self._patch
        height, width = (max(1, round(side * scale)) * self._patch for side in image.shape[:2])
        return resize(image, height, width)

    def inputs(self, image: np.ndarray, scale: float) -> Arrays:
        """patches uint8 [P, 3 · patch²] and positions float32 [P, d]; there is one scale."""
        rows, columns = (side // self._patch for side in image.shape[:2])
        count = rows * columns
        row, column = np.divmod(np.arange(count), columns)
        centres = (np.stack([column, row], 1) + 0.5) / [columns, rows]
        arrays = {"patches": patches_of(image, self._patch), "positions": self._positions(rows, columns)}
        arrays |= {"valid": np.ones(count, bool), "xy": centres.astype(np.float32)}
        missing = -count % BUCKET
        return {name: np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)]) for name, x in arrays.items()}

    @classmethod
    def features(cls, network: ViT, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Patch tokens, and class tokens, pooled as [class token, mean of patch tokens], each of length 1 before its weight."""
        patches, valid = batch["patches"], batch["valid"]
        pixels = standardised(patches.reshape(*patches.shape[:2], -1, 3)).reshape(patches.shape)
        if not cls.pooled:
            tokens = network(pixels, batch["positions"], valid)
            return tokens.patches, tokens.class_token
        middle = min(len(network.blocks), max(1, round(POOLED_DEPTH * network.config.depth)))
        tokens = network(pixels, batch["positions"], valid, middle)
        mean = jnp.where(valid[..., None], tokens.middle, 0).sum(1)  # its direction is the mean's
        both = [unit_length(tokens.class_token), POOLED_WEIGHT * unit_length(mean)]
        return tokens.patches, jnp.concatenate(both, axis=-1)

    @staticmethod
    def squares(network: ViT, side: int) -> Callable[[jax.Array], Arrays]:
        """Without padding; raises UserError where the side is no multiple of a patch's."""
        patch, count = network.config.patch, side // network.config.patch
        if side % patch:
            raise UserError(f"--config.side={side}: the network takes multiples of {patch}")
        positions = positions_of(np.asarray(network.positions[...]), count, count, network.config.antialias)

        def batch_of(images: jax.Array) -> Arrays:
            valid = jnp.ones((len(images), count * count), bool)
            return {"patches": patches_of(images, patch), "positions": jnp.asarray(positions)[None], "valid": valid}

        return batch_of


def variant(name: str) -> type[Dinov2Backbone]:
    """The class of `dinov2_SIZE`, `dinov2_SIZE_reg`, or one of them with `_pooled`."""
    size, *words = name.removeprefix("dinov2_").split("_")
    registers, pooled = "reg" in words, "pooled" in words
    model = f"dinov2_vit{size[0]}14"
    file = f"{model}_reg4_pretrain.pth" if registers else f"{model}_pretrain.pth"
    address = f"https://dl.fbaipublicfiles.com/dinov2/{model}"
    title = f"DINOv2 {size}{' with registers' if registers else ''}, class token{' and mean patch' if pooled else ''}"
    facts = {"name": name, "global_name": title, "size": size, "pooled": pooled, "file": file, "address": address}
    return type("Dinov2Variant", (Dinov2Backbone,), {**facts, "default_side": 364, "released_detector": False})
