"""Floating-point operations that AMES needs, counted in the traced program: matrix products, a multiply-add counted as two.

Softmax, LayerNorm and activations (about 1 % at the released size) are left out, and so are products that our
program does without need: a share of the matmul peak is never flattered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import jaxprs_in_params

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.kinds import Config, Model, new_model
from ames_jax.training.batch import TripletArrays
from ames_jax.training.step import Recipe, make_loss


def matrix_products(function: Callable, *arguments: Any) -> int:
    """FLOPs of the matrix products of `function`, traced for arrays or `jax.ShapeDtypeStruct`s; nothing is computed."""

    def count(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
            runs = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += runs * sum(map(count, jaxprs_in_params(equation.params)))
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def tokenizer(config: AMESConfig, descriptors: int) -> int:
    """Descriptors to tokens."""
    return _of_model(config, lambda model, side: model.tokenizer(side), _side(config, descriptors))


def pair(config: AMESConfig, q: int, t: int) -> int:
    """One pair with all of its final tokens, by the attention blocks that exist."""
    sides = _side(config, q, (1,)), _side(config, t, (1,))
    return _of_model(config, lambda model, *sides: model(*sides).tokens, *sides)


def shortlist(config: Config, q: int, t: int, images: int, packed: bool = False) -> int:
    """Scoring one query against `images` database images, which are stored as bits (`packed`) or as descriptors."""

    def score(model: Model, query: DescriptorSet, database: DescriptorSet) -> jax.Array:
        return model.logits(model.share_query(query), database)

    work = _of_model(config, score, _side(config, q), _side(config, t, (images,), packed))
    if not isinstance(config, AMESConfig):
        return work
    # Not needed, and not worth leaving out of the program: the query's q, k, v in the first cross block are the same for
    # all images, and in the first self block nobody reads the matching token's q.
    again = (images - 1) * q * 3 if config.layers > 1 else 0
    return work - 2 * config.model_width**2 * (again + images)


def dense_pair(config: AMESConfig, q: int, t: int) -> int:
    """One pair computed as in the release: (1 + Q + T)² scores in every block, of which masks take some away."""
    s, d = 1 + q + t, config.model_width
    layer = 2 * (8 * s * d**2 + 4 * s**2 * d) + 4 * s * d * config.feed_forward
    return tokenizer(config, q + t) + config.layers * layer + 2 * d


def train_pair(config: AMESConfig, q: int, t: int, teacher: AMESConfig | None, full: int) -> int:
    """One pair of a training step: loss, gradient, and the teacher, which sees `full` descriptors per side.

    Of the teacher's last layer only what the loss reads is counted.
    """
    graph, parameters = nnx.split(nnx.eval_shape(lambda: AMES(config, nnx.Rngs(0))))
    loss = make_loss(graph, Recipe(steps=1, buckets=tuple(sorted({q, t}))))
    sides = {role: _side(config, full, (1,)) for role in ("anchor", "positive", "negative")}
    batch = TripletArrays(**sides, lengths=jax.ShapeDtypeStruct((2,), jnp.int32))
    target = None
    if teacher is not None:
        target = jax.ShapeDtypeStruct((2, 1 + 2 * full, teacher.model_width), jnp.float32)
    gradient = jax.grad(lambda *arguments: loss(*arguments, (q, t)), has_aux=True)
    work = matrix_products(gradient, parameters, batch, target) // 2  # a triplet is two pairs
    if teacher is None:
        return work
    d, unread = teacher.model_width, 2 * full - q - t
    return work + pair(teacher, full, full) - 4 * d * unread * (d + teacher.feed_forward + full + 1)


def _of_model(config: Config, function: Callable, *sides: DescriptorSet) -> int:
    graph, parameters = nnx.split(nnx.eval_shape(lambda: new_model(config, nnx.Rngs(0))))
    return matrix_products(
        lambda parameters, *sides: function(nnx.merge(graph, parameters), *sides), parameters, *sides
    )


def _side(config: Config, count: int, images: tuple[int, ...] = (), packed: bool = False) -> DescriptorSet:
    width, dtype = (config.bits // 8, jnp.uint8) if packed else (config.descriptor_width, jnp.float32)
    return DescriptorSet(jax.ShapeDtypeStruct((*images, count, width), dtype))
