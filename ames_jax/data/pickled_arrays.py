"""Arrays, types and bytes as pickles describe them, made only where they cannot reach outside of their own memory."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ames_jax.runtime.errors import UserError


def plain_dtype(text: str, *_rest: Any) -> np.dtype:
    """A type of numbers, texts or objects; one with fields or an array in it could reach outside of an item."""
    if not isinstance(text, str) or not re.fullmatch(r"[<>=|]?(bool|[biufcOSU?][0-9]{0,9})", text):
        raise UserError(f"refused: arrays of the type {str(text)[:40] if isinstance(text, str) else 'with fields'}")
    return np.dtype(text, copy=True)


def dtype_state(dtype: np.dtype, state: Any) -> tuple:
    """The state that `__setstate__` of a type may be given: of the pickled one the byte order alone; the rest is the type's."""
    if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
        raise UserError("refused: a type of arrays that is none of NumPy's")
    if any(part is not None for part in state[2:5]) or dtype.kind not in "biufcOSU":
        raise UserError("refused: arrays with fields, or with arrays in their items")
    sized = dtype.kind in "SU"
    flags = {"O": 63, "U": 8}.get(dtype.kind, 0)
    return 3, state[1], None, None, None, dtype.itemsize if sized else -1, dtype.alignment if sized else -1, flags


def array_state(state: Any) -> tuple:
    """The state of an array, checked: NumPy takes the shape's word for the number of its objects."""
    version, shape, dtype, fortran, data = state if len(state) == 5 else (1, *state)
    if not isinstance(dtype, np.dtype) or not all(type(length) is int and length >= 0 for length in shape):
        raise UserError("refused: an array without a type or a shape")
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    elif isinstance(data, memoryview):
        # An array takes its bytes as bytes: of all that is mapped, these alone are read in full.
        data = bytes(data)
    count = math.prod(shape)
    if dtype.hasobject != isinstance(data, list) or len(data) != count * (1 if dtype.hasobject else dtype.itemsize):
        raise UserError(f"refused: an array of {count} values that holds {len(data)} bytes or objects")
    return version, tuple(shape), dtype, bool(fortran), data


def reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, to be filled by its state."""
    if kind is not NoArray or tuple(shape) != (0,):
        raise UserError("refused: an array that is not empty before it is filled")
    return np.ndarray((0,), np.int8)


def scalar(dtype: Any, data: Any = None) -> np.generic:
    """One number from its bytes; raises UserError where they are not those of a plain type."""
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise UserError("refused: a number without its bytes")
    return np.frombuffer(data, dtype)[0]


def byte_array(data: bytes | str = b"", encoding: str = "latin-1") -> bytearray:
    """Of bytes or text: of a number it would be as long as that."""
    return bytearray(encode(data, encoding) if isinstance(data, str) else bytes(memoryview(data)))


def plain_dict(*values: Any) -> dict:
    """Of what counts (`Counter`) or has defaults (`defaultdict`), the content."""
    return dict(next((value for value in values if isinstance(value, dict)), {}))


class NoArray:
    """Stands for `numpy.ndarray`, which no file may make itself."""

    def __new__(cls, *_: Any) -> Any:
        raise UserError("refused: an array that is made by its shape")


def encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"refused: bytes in the encoding {encoding}")
    return text.encode(encoding)
