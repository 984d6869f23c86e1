"""From descriptors to tokens: L2-normalise, binarize (or not), remap, LayerNorm. Stored bits enter after the binarizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from ames_jax.descriptors import AnyArray, DescriptorSet, pack_bits, unpack_bits
from ames_jax.runtime.errors import UserError

NORM_EPSILON = 1e-5


def check_fields(config: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError, naming the field, where a model's bits are no whole bytes, or a value is none of its choices."""
    if config.bits is not None and config.bits % 8:
        raise UserError(f"bits {config.bits} is not a whole number of bytes")
    for field, allowed in choices.items():
        if getattr(config, field) not in allowed:
            raise UserError(f"{field} must be one of {', '.join(allowed)}, found {getattr(config, field)!r}")


def l2_normalise(x: Float32[AnyArray, "*batch D"]) -> Float32[Array, "*batch D"]:
    """Divides the last axis by its Euclidean norm, whatever its scale; a zero vector stays zero.

    (PyTorch's `normalize`, which the release calls, divides by 1e-12 at least, and leaves shorter vectors short.)
    """
    x = x * _power_of_two(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _power_of_two(largest: Float32[Array, "*batch 1"]) -> Float32[Array, "*batch 1"]:
    """The power of two that brings a value to 1..2; 1 for zero.

    A product with it keeps every digit, so a vector that is scaled by it first has the same direction to the last bit, and
    no square underflows or overflows.
    """
    exponent = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(largest), jnp.int32) >> 23
    inverse = jax.lax.bitcast_convert_type(jnp.clip(254 - exponent, 1, 254) << 23, jnp.float32)
    return jnp.where(exponent == 0, jnp.float32(1), inverse)


def layer_norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the release's ε; variance from centred values, since E[x²] − E[x]² loses digits that parity needs."""
    return nnx.LayerNorm(width, epsilon=NORM_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)


@jax.custom_jvp
def straight_through_sign(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """±1 forward (an exact zero gives −1, as bit 0 in storage); the gradient passes through unchanged."""
    return jnp.where(x > 0, 1, -1).astype(x.dtype)


@straight_through_sign.defjvp
def _straight_through_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return straight_through_sign(primals[0]), tangents[0]


def erf_sign(x: Float[Array, "*shape"], sigma: float) -> Float[Array, "*shape"]:
    """The release's training surrogate erf(x / √(2σ)); σ = 1e-6 there, which has no gradient beyond |x| ≈ 0.005."""
    return jax.scipy.special.erf(x / math.sqrt(2 * sigma))


class Binarizer(nnx.Module):
    """Descriptors [..., N, D] to bits: L2-normalise, x·W with W = `hyperplanes` [D, bits], sign; bits None: it has none."""

    def __init__(
        self,
        descriptor_width: int,
        bits: int | None,
        *,
        binarizer: str = "straight_through",
        sigma: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        self.bits, self.binarizer, self.sigma = bits, binarizer, sigma
        if bits is not None:
            self.hyperplanes = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (descriptor_width, bits)))

    def projections(self, features: Float[AnyArray, "*batch N D"]) -> Float32[Array, "*batch N bits"]:
        """Signed distances to the hyperplanes, whose signs are the bits."""
        # Full precision whatever the compute type: a bit must not depend on it.
        x = l2_normalise(features.astype(jnp.float32))
        return jnp.matmul(x, self.hyperplanes[...], precision=jax.lax.Precision.HIGHEST)

    def signs(self, descriptors: DescriptorSet, train: bool = False) -> Float32[Array, "*batch N bits"]:
        """The bits as ±1; in training, where the binarizer is "erf", its surrogate of them."""
        if descriptors.is_packed:
            return unpack_bits(descriptors.features)
        values = self.projections(descriptors.features)
        surrogate = train and self.binarizer == "erf"
        return erf_sign(values, self.sigma) if surrogate else straight_through_sign(values)

    def binarize(self, descriptors: DescriptorSet) -> DescriptorSet:
        """The set with its features as stored bits, uint8 [..., N, bits / 8]; raises ValueError for a full-precision model."""
        if self.bits is None:
            raise ValueError("a full-precision model has no bits to store")
        if descriptors.is_packed:
            return descriptors
        return dataclasses.replace(descriptors, features=pack_bits(self.projections(jnp.asarray(descriptors.features))))


class Tokenizer(Binarizer):
    """Descriptors [..., N, D] or stored bits uint8 [..., N, bits / 8] to tokens [..., N, d] (paper section 3.2).

    Full precision (`bits=None`): L2-normalise, Linear(D → d), LayerNorm.
    Binary: L2-normalise, x·W with W [D, bits], sign, Linear(bits → d), LayerNorm.
    """

    def __init__(
        self,
        descriptor_width: int,
        model_width: int,
        bits: int | None,
        *,
        binarizer: str,
        sigma: float,
        dtype: jnp.dtype,
        precision: jax.lax.Precision | None,
        rngs: nnx.Rngs,
    ):
        super().__init__(descriptor_width, bits, binarizer=binarizer, sigma=sigma, rngs=rngs)
        truncated_normal = nnx.initializers.truncated_normal(stddev=0.02, lower=-2.0, upper=2.0)
        options = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.remap = nnx.Linear(bits or descriptor_width, model_width, kernel_init=truncated_normal, **options)
        self.norm = layer_norm(model_width, dtype, rngs)

    def __call__(self, descriptors: DescriptorSet, train: bool = False) -> Float[Array, "*batch N d"]:
        """The tokens; `train` matters to the erf binarizer alone."""
        if self.bits is None and not descriptors.is_packed:
            values = l2_normalise(descriptors.features.astype(jnp.float32))
        else:
            values = self.signs(descriptors, train)
        return self.norm(self.remap(values))
