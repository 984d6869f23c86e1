"""What this machine can do at best, and how long things take on it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.benchmarks.memory import peak_bytes
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.torch_weights import from_torch, to_torch

MATMUL = 2048
# Weights are drawn this much wider than the release starts with, so that the logits of random pairs differ visibly.
SPREAD = 4.0


def matmul_peak(dtype: str, size: int = MATMUL, repeats: int = 20) -> float:
    """FLOP/s of the fastest of some size³ products of `dtype` on one device (all cores on CPU), as the model does them."""
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    a = jnp.full((size, size), 0.5, jnp.dtype(dtype))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    product(a, a).block_until_ready()
    queued = 1 if jax.default_backend() == "cpu" else 20  # enough to hide the time of a launch
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(queued):
            out = product(a, a)
        out.block_until_ready()
        best = min(best, (time.perf_counter() - start) / queued)
    return 2 * size**3 / best


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall-clock seconds of `work()`, whose result is waited for; call it warm."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_memory() -> int:
    """Peak bytes: of the first accelerator since the start, or of this process since `memory.reset_peak` on CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use") or peak_bytes())


def comparable(config: AMESConfig, dtype: str) -> AMESConfig:
    """The configuration in which both sides compute in `dtype`, and no rounding stands between their logits.

    Full precision stores database tokens in float16. A token that falls on the border between two float16 values goes to
    either by the last bit of float32, which two programs never share, and the step is a thousand times that bit. So both
    sides leave this rounding out (it is no work worth counting); the golden files of the release check it.
    """
    return dataclasses.replace(config, dtype=dtype, round_stored=False)


def random_model(config: AMESConfig, seed: int = 0) -> tuple[AMES, dict[str, np.ndarray]]:
    """A model with random weights, and the same weights under the release's names."""
    weights = to_torch(AMES(config, nnx.Rngs(seed)))
    wide = {
        name for name, array in weights.items() if array.ndim == 2 and "in_proj" not in name and not name.endswith("W")
    }
    weights = {name: array * np.float32(SPREAD) if name in wide else array for name, array in weights.items()}
    return from_torch(weights, config), weights


def describe() -> dict[str, Any]:
    """Facts that a figure needs beside it."""
    device = jax.local_devices()[0]
    return {"device": device.device_kind, "platform": device.platform, "devices": jax.local_device_count()}
