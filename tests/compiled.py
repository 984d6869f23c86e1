"""Calls of a model as one compiled program: run eagerly, every operation would be compiled by itself, for every shape."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx

from ames_jax.model.ames import AMES


def run(method: Callable[..., Any], model: AMES, *arguments: Any) -> Any:
    """`method(model, *arguments)`, e.g. `run(AMES.pair_logits, model, query, database)`."""
    graph, params = nnx.split(model)
    return _run(method, graph, params, arguments)


@partial(jax.jit, static_argnums=(0, 1))
def _run(method: Callable[..., Any], graph: nnx.GraphDef, params: nnx.State, arguments: tuple) -> Any:
    return method(nnx.merge(graph, params), *arguments)


def logits(model: AMES, *sides: Any) -> jax.Array:
    """Logits of the whole forward pass, compiled."""
    return run(AMES.__call__, model, *sides).logit
