"""Files of the networks' authors → our modules: every missing, left-over and mis-shaped name in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.data.safe_pickle import read_pickle
from ames_jax.runtime.errors import UserError

Weights = Mapping[str, np.ndarray]
# Values under the paths of our parameters.
Parameters = dict[tuple[str | int, ...], np.ndarray]
Module = TypeVar("Module", bound=nnx.Module)

# Under which key a checkpoint keeps its weights: the release, CVNet's authors, others.
KEYS = ("state", "model_state", "state_dict", "model")


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


def precision_of(dtype: Any) -> jax.lax.Precision | None:
    """Of a network's products: on accelerators the default rounds those of float32 to fewer bits."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def weight_and_bias(name: str) -> list[str]:
    """Names of the two parameters of a layer."""
    return [f"{name}.weight", f"{name}.bias"]


def count_blocks(weights: Weights, pattern: str, first: int = 0) -> int:
    """The number of names `pattern.format(number)` in a row from `first` on; at least 1, which is then missing."""
    number = first
    while pattern.format(number) in weights:
        number += 1
    return max(1, number - first)


def check_names(weights: Weights, names: Iterable[str], source: str, ignored: str = "") -> None:
    """Raises UserError where one of the names is missing, or another is there that does not end in `ignored`."""
    expected = set(names)
    faults = [f"missing {name}" for name in sorted(expected - weights.keys())]
    left = sorted(weights.keys() - expected)
    _refuse([*faults, *(f"unknown {name}" for name in left if not (ignored and name.endswith(ignored)))], source)


def fill(make: Callable[[], Module], values: Parameters, source: str) -> Module:
    """The module that `make` gives, with these values in place of its own; raises UserError for another shape."""
    graph, state = nnx.split(nnx.eval_shape(make))
    filled, faults = [], []
    for path, slot in nnx.to_flat_state(state):
        value = values[tuple(path)]
        if value.shape != slot.shape:
            faults.append(f"{'/'.join(map(str, path))} has shape {value.shape}, expected {slot.shape}")
        else:
            filled.append((path, slot.replace(jnp.asarray(value, jnp.float32))))
    _refuse(faults, source)
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _refuse(faults: list[str], source: str) -> None:
    if faults:
        shown = "; ".join(faults[:8]) + ("; …" if len(faults) > 8 else "")
        raise UserError(f"{source}: the weights do not fit the network ({len(faults)} faults): {shown}")
