"""DINOv2 as a backbone: patch tokens as local and the class token as global descriptors, one scale.

`dinov2` is the release's: ViT-B/14 with registers, 770 pixels, tokens through its detector. `dinov2_small`, `_base` and
`_large`, each also with `_reg`, are the authors' networks as they are, at 364 pixels and without a detector.
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

from ames_jax.extraction.detector import Detector
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
VARIANTS = tuple(f"dinov2_{size}{registers}" for size in SIZES for registers in ("", "_reg"))


class Dinov2Backbone(NetworkBackbone):
    """Each side becomes the nearest multiple of 14 after the longer has become `max_side`, up or down."""

    name, global_name = "dinov2", "DINOv2 class token"
    default_side = 770
    size: str | None = None  # of a variant
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

    @staticmethod
    def widths(network: ViT) -> tuple[int, int]:
        """Of a patch token and of the class token."""
        return network.config.width, network.config.width

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

    @staticmethod
    def features(network: ViT, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Patch tokens and class tokens."""
        patches = batch["patches"]
        pixels = standardised(patches.reshape(*patches.shape[:2], -1, 3)).reshape(patches.shape)
        tokens = network(pixels, batch["positions"], batch["valid"])
        return tokens.patches, tokens.class_token

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
    """The class of one of `VARIANTS`."""
    size, _, registers = name.removeprefix("dinov2_").partition("_")
    model = f"dinov2_vit{size[0]}14"
    file = f"{model}_reg4_pretrain.pth" if registers else f"{model}_pretrain.pth"
    address = f"https://dl.fbaipublicfiles.com/dinov2/{model}"
    title = f"DINOv2 {size}{' with registers' if registers else ''}, class token"
    facts = {"name": name, "global_name": title, "size": size, "file": file, "address": address}
    return type("Dinov2Variant", (Dinov2Backbone,), {**facts, "default_side": 364, "released_detector": False})
