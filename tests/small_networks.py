"""Networks small enough to be made up in a test, in their authors' files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ames_jax.benchmarks.extraction_speed import random_weights
from ames_jax.extraction import dinov2
from ames_jax.extraction.vit import ViTConfig
from ames_jax.extraction.xfeat import BLOCKS, LAST
from ames_jax.model.torch_files import write_checkpoint

TINY = ViTConfig(width=48, depth=3, heads=3, mlp=96)


def made_up_weights() -> dict[str, np.ndarray]:
    """Weights under the authors' names, drawn in the order of the names, as for the golden file."""
    shapes = {"fine_matcher.0.weight": (512, 128), "fine_matcher.12.weight": (64, 512), "fine_matcher.12.bias": (64,)}
    shapes |= {f"fine_matcher.{i}.weight": (512, 512) for i in (3, 6, 9)}
    shapes |= {f"fine_matcher.{i}.bias": (512,) for i in (0, 3, 6, 9)}
    shapes |= {f"fine_matcher.{i}.running_{s}": (512,) for i in (1, 4, 7, 10) for s in ("mean", "var")}
    for block, specs in BLOCKS.items():
        for i, (inputs, outputs, side, _) in enumerate(specs):
            shapes[f"{block}.{i}.layer.0.weight"] = (outputs, inputs, side, side)
            shapes |= {f"{block}.{i}.layer.1.running_{s}": (outputs,) for s in ("mean", "var")}
    for name, (inputs, outputs) in LAST.items():
        shapes |= {f"{name}.weight": (outputs, inputs, 1, 1), f"{name}.bias": (outputs,)}
    rng, weights = np.random.default_rng(0), {}
    for name in sorted(shapes):
        value = rng.standard_normal(shapes[name]).astype(np.float32)
        if name.endswith("running_var"):
            value = np.abs(value) * 0.5 + 0.5
        elif name.endswith(("running_mean", "bias")):
            value = value * 0.1
        elif value.ndim > 1:
            value = value * np.sqrt(2 / np.prod(value.shape[1:])).astype(np.float32)
        weights[name] = value.astype(np.float32)
    return weights


def write_networks(folder: Path, patch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Files of an XFeat and of a tiny network without registers, which is "dinov2_small" for as long as the patch lasts."""
    patch.setitem(dinov2.SIZES, "small", (48, 3))
    patch.setattr("ames_jax.extraction.vit.HEAD_WIDTH", 16)
    weights = random_weights(TINY)
    del weights["register_tokens"]
    write_checkpoint(folder / "xfeat.pt", made_up_weights())
    write_checkpoint(folder / "vit.pt", weights)
    return folder / "xfeat.pt", folder / "vit.pt"
