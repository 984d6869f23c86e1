"""Names and types that values read from JSON must have, so that a damaged file is told on opening and by its key."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Any

from ames_jax.runtime.errors import UserError


def check_keys(values: Mapping[str, Any], keys: Mapping[str, Any], where: str) -> None:
    """Raises UserError, naming `where` and the key, unless values read from JSON are of these types.

    keys: name → type. `int` takes numbers from 0 to 2⁵³ alone, `float` finite ones, a set the values it holds, `T | None`
      null as well. A mapping
      stands for an object with its keys, a list of one type for a list of such; a name that ends in "?" may be missing.
    """
    for name, kind in keys.items():
        key = name.removesuffix("?")
        if key in values:
            _check_value(values[key], kind, f"{where}: {key}")
        elif key == name:
            raise UserError(
                f"{where}: {key} is missing; the file is damaged or of another kind: write or copy it again"
            )


def _check_value(value: Any, kind: Any, where: str) -> None:
    if isinstance(kind, types.UnionType):
        if value is not None:
            _check_value(value, next(choice for choice in kind.__args__ if choice is not type(None)), where)
    elif isinstance(kind, list):
        _check_value(value, list, where)
        for item in value:
            _check_value(item, kind[0], where)
    elif isinstance(kind, Mapping):
        _check_value(value, dict, where)
        check_keys(value, kind, where)
    elif isinstance(kind, set):
        if isinstance(value, list | dict) or value not in kind:
            raise UserError(f"{where}: expected one of {', '.join(sorted(map(str, kind)))}, found {str(value)[:60]!r}")
    elif kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**53:
            raise UserError(f"{where}: expected a whole number from 0 on, found {str(value)[:60]!r}")
    elif kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
            raise UserError(f"{where}: expected a number, found {str(value)[:60]!r}")
    elif not isinstance(value, kind):
        expected = {str: "text", list: "a list", dict: "an object"}.get(kind, kind.__name__)
        raise UserError(f"{where}: expected {expected}, found {str(value)[:60]!r}")
