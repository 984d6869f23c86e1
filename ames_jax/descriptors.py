"""Sets of local descriptors: the only thing that enters the model, as floats or as packed bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped, UInt8

from ames_jax.runtime.errors import UserError

AnyArray = Array | np.ndarray  # a DescriptorSet holds either


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DescriptorSet:
    """Local descriptors of one image, or of many images along leading axes; strongest first.

    Attributes:
      features: float [..., N, D], or packed bits uint8 [..., N, bits / 8] (see `pack_bits`).
      valid: bool [..., N], True where a descriptor is real and False where it is padding; None when all are real.
        (The release's mask is the opposite: 1 marks padding.)
      xy: float [..., N, 2], positions as a share of the image's width and height, or None.
      scale: float [..., N], scale of each descriptor in the unit of its extractor, or None.
      weight: float [..., N], strength of each descriptor, falling along N, or None.

    Lists, tensors of PyTorch, and arrays of objects or of another byte order become arrays of NumPy; UserError where they
    cannot.
    """

    # Transformations of JAX put whatever they map to into the fields, so their types are not checked.
    features: Any
    valid: Any = None
    xy: Any = None
    scale: Any = None
    weight: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value is None or isinstance(value, jax.Array)) and _is_foreign(value):
                object.__setattr__(self, field.name, as_array(value, f"DescriptorSet: {field.name}"))

    @property
    def count(self) -> int:
        """N, the number of rows, padding included."""
        return self.features.shape[-2]

    @property
    def is_packed(self) -> bool:
        """True when `features` holds packed bits."""
        return self.features.dtype == np.uint8

    def __getitem__(self, index: Any) -> DescriptorSet:
        """Indexes the leading axes of every field (never the descriptor axis)."""
        return jax.tree.map(lambda field: field[index], self)

    def truncate(self, count: int) -> DescriptorSet:
        """The `count` strongest descriptors: the first rows, or the whole set where it has fewer."""
        if count >= self.count:
            return self
        return self._map_rows(lambda field, axis: field[(Ellipsis, slice(count), *([slice(None)] * (-axis - 1)))])

    def pad(self, count: int) -> DescriptorSet:
        """Pads with zero rows to `count` and marks them in `valid`; raises ValueError where the set is longer."""
        missing = count - self.count
        if missing < 0:
            raise ValueError(f"cannot pad {self.count} descriptors to {count}")
        if missing == 0:
            return self
        xp = jnp if isinstance(self.features, jax.Array) else np
        real = (
            self if self.valid is not None else dataclasses.replace(self, valid=xp.ones(self.features.shape[:-1], bool))
        )

        def pad_rows(field: AnyArray, axis: int) -> AnyArray:
            widths = [(0, 0)] * field.ndim
            widths[axis] = (0, missing)
            return xp.pad(field, widths)

        return real._map_rows(pad_rows)

    def _map_rows(self, function: Any) -> DescriptorSet:
        """Applies `function(field, axis of N)` to every field that is there."""
        axes = {"features": -2, "valid": -1, "xy": -2, "scale": -1, "weight": -1}
        fields = {name: getattr(self, name) for name in axes}
        return DescriptorSet(**{n: None if f is None else function(f, axes[n]) for n, f in fields.items()})


def _is_foreign(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == object or not value.dtype.isnative or isinstance(value, np.ma.MaskedArray)
    return isinstance(value, list) or hasattr(value, "detach")


def as_array(value: Any, name: str) -> np.ndarray:
    """Lists, tensors of PyTorch and arrays of any kind as an array of numbers in the machine's byte order.

    Raises UserError, naming `name`, for lists of unequal length, for what is not made of real numbers, and for masked arrays.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(f"{name}: a masked array; give its values, and where they are descriptors the mask as `valid`")
    try:
        if hasattr(value, "detach"):  # of PyTorch, maybe on a device, of a type that NumPy does not know
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        array = np.asarray(value)
        if array.dtype == object:
            array = array.astype(np.float32)
    except Exception as error:  # whatever the object's own conversion raises
        raise UserError(
            f"{name}: {type(value).__name__} is no array of numbers ({' '.join(str(error).split())[:120]})"
        ) from error
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name}: expected numbers, found {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def stack(sets: Sequence[DescriptorSet], count: int | None = None) -> DescriptorSet:
    """Sets of single images [N_i, ·] as one [B, count, ·], truncated and padded to `count` (default: the longest)."""
    count = count if count is not None else max(s.count for s in sets)
    padded = [s.truncate(count).pad(count) for s in sets]
    if any(s.valid is not None for s in padded):
        padded = [s if s.valid is not None else dataclasses.replace(s, valid=np.ones(count, bool)) for s in padded]
    return jax.tree.map(lambda *fields: np.stack(fields), *padded)


def pack_bits(values: Shaped[AnyArray, "*batch bits"]) -> UInt8[np.ndarray, "*batch bits/8"]:
    """Packs the signs of the last axis (bool or numbers, a multiple of 8) into bytes.

    Bit 1 stands where `values > 0`, so an exact zero is stored as 0; the first value takes the highest bit of the first
    byte, the order of the release's files.
    """
    return np.packbits(np.asarray(values) > 0, axis=-1)


def unpack_bits(packed: UInt8[AnyArray, "*batch bytes"]) -> Float32[Array, "*batch 8*bytes"]:
    """Unpacks bits to ±1; works inside jit, so stored bits travel to the device packed."""
    return jnp.unpackbits(jnp.asarray(packed), axis=-1).astype(jnp.float32) * 2 - 1


def validate(
    descriptors: DescriptorSet, width: int, bits: int | None, name: str, axes: int | None = None
) -> DescriptorSet:
    """Refuses, on the host, descriptors that cannot enter a model of this descriptor `width` (and `bits`).

    Returns the set as the model takes it: integers and float64 as float32 of the same directions, whatever their scale; a
    mask as bool; and where padding rows hold NaN or infinity, which would spread in a matrix product, zeros in them.

    Args:
      axes: of `features`, where their number matters.

    Raises:
      UserError: naming `name` and what is wrong: no DescriptorSet, a width or number of axes that does not match, packed
        bits for a full-precision model, a mask of another shape or meaning, or the first row that holds NaN or infinity.
    """
    if not isinstance(descriptors, DescriptorSet):
        raise UserError(f"{name}: expected a DescriptorSet, found {type(descriptors).__name__}")
    features = descriptors.features
    if not (hasattr(features, "ndim") and hasattr(features, "dtype")):  # what DescriptorSet leaves for JAX's own use
        raise UserError(f"{name}: expected an array of descriptors, found {type(features).__name__}")
    if features.ndim < 2 or features.ndim != (axes or features.ndim):
        expected = {2: "[N, D] of one image", 3: "[images, N, D]"}.get(axes, "[..., N, D]")
        raise UserError(f"{name}: expected descriptors {expected}, found an array of shape {tuple(features.shape)}")
    found = features.shape[-1]
    if descriptors.is_packed:
        if bits is None:
            raise UserError(f"{name}: packed bits were given to a full-precision model; give float descriptors")
        if found * 8 != bits:
            raise UserError(f"{name}: expected {bits} bits ({bits // 8} bytes) per descriptor, found {found} bytes")
    elif found != width:
        raise UserError(f"{name}: the model takes descriptors of width {width}, found {found}")
    valid = _as_mask(descriptors.valid, tuple(features.shape[:-1]), name)
    if valid is not descriptors.valid:
        descriptors = dataclasses.replace(descriptors, valid=valid)
    if descriptors.is_packed:
        return descriptors
    single = _as_single(features, name)
    bad = ~np.isfinite(np.asarray(single)).all(-1)
    if bad.any():
        real = bad if valid is None else bad & np.asarray(valid)
        if real.any():
            row = tuple(int(i) for i in np.argwhere(real)[0])
            raise UserError(f"{name}: descriptor {row if len(row) > 1 else row[0]} holds NaN or infinity")
        single = np.where(bad[..., None], 0, np.asarray(single))
    return descriptors if single is features else dataclasses.replace(descriptors, features=single)


def _as_mask(valid: Any, shape: tuple[int, ...], name: str) -> Any:
    """`valid` as bool of this shape; raises UserError where it is none."""
    if valid is None:
        return None
    if tuple(valid.shape) != shape:
        raise UserError(f"{name}: valid has shape {tuple(valid.shape)}, expected {shape}")
    if valid.dtype == bool:
        return valid
    values = np.asarray(valid)
    if not ((values == 0) | (values == 1)).all():
        raise UserError(f"{name}: valid holds {valid.dtype} beside 0 and 1; expected True where a descriptor is real")
    return values.astype(bool)


def _as_single(features: AnyArray, name: str) -> AnyArray:
    """Floats of at most 32 bits; of wider numbers float32, each row by a power of two in a range that holds it."""
    if jnp.issubdtype(features.dtype, jnp.floating) and features.dtype.itemsize <= 4:
        return features
    if features.dtype.kind not in "iuf":
        raise UserError(f"{name}: expected descriptors of floats or of packed bits (uint8), found {features.dtype}")
    values = np.asarray(features, np.float64)
    with np.errstate(invalid="ignore"):
        exponent = np.frexp(np.abs(values).max(axis=-1, keepdims=True, initial=0))[1]
    exponent[np.abs(exponent) < 64] = 0  # the values as they are
    return np.ldexp(values, -exponent).astype(np.float32)
