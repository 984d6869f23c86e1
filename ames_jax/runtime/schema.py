"""Names and types that values read from JSON must have, so that a damaged file is told on opening and by its key."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any

from ames_jax.runtime.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Between:
    """A kind of values: numbers from `least` to `most`."""

    least: float
    most: float


def check_keys(
    values: Mapping[str, Any],
    keys: Mapping[str | re.Pattern, Any],
    where: str,
    advice: str = "write or copy it again",
    *,
    only: bool = False,
) -> None:
    """Raises UserError, naming `where` and the key, unless values read from JSON are of these types.

    Args:
      keys: name → type. `int` takes numbers from 0 to 2⁵³ alone, `float` finite ones, a range those in it, a set the values
        it holds, a pattern texts that match, `T | None` null as well, a tuple one of its types. A mapping stands for an object
        with its keys, a list of one type for a list of such, with ... behind the type for one that is not empty. A name
        that ends in "?" may be missing; a pattern stands for any names that match, and then there must be no others.
      advice: ends every message.
      only: there must be no other keys.
    """
    _Check(advice, only).keys(values, keys, where)


@dataclasses.dataclass(frozen=True)
class _Check:
    advice: str
    only: bool

    def keys(self, values: Mapping[str, Any], keys: Mapping[str | re.Pattern, Any], where: str) -> None:
        named = {name.removesuffix("?"): kind for name, kind in keys.items() if isinstance(name, str)}
        patterns = [name for name in keys if isinstance(name, re.Pattern)]
        kinds = {key: keys[name] for name in patterns for key in values if name.fullmatch(key)} | named
        for key in (key for key in values if key not in kinds and (self.only or patterns)):
            raise UserError(f"{where}: unknown key {key[:60]!r}{did_you_mean(key, named) or f'; {self.advice}'}")
        for key in (name for name in named if name in keys and name not in values):
            raise UserError(f"{where}: {key} is missing; {self.advice}")
        for key in (key for key in values if key in kinds):
            self.value(values[key], kinds[key], f"{where}: {key}")

    def value(self, value: Any, kind: Any, where: str) -> None:
        if isinstance(kind, types.UnionType | tuple):
            choices = [*getattr(kind, "__args__", kind)]
            if value is None and (None in choices or types.NoneType in choices):
                return
            kind = next((one for one in choices if isinstance(one, list) == isinstance(value, list)), choices[0])
        if isinstance(kind, list):
            if not isinstance(value, list) or len(value) < len(kind) - 1:
                self.refuse("a list" if len(kind) == 1 else "a list that is not empty", value, where)
            for item in value:
                self.value(item, kind[0], where)
        elif isinstance(kind, Mapping):
            self.value(value, dict, where)
            self.keys(value, kind, where)
        elif expected := _expected(value, kind):
            self.refuse(expected, value, where)

    def refuse(self, expected: str, value: Any, where: str) -> None:
        raise UserError(f"{where}: expected {expected}, found {str(value)[:60]!r}; {self.advice}")


def _expected(value: Any, kind: Any) -> str:
    """Text of what was expected, where a value is not of a kind of plain values; else nothing."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    if isinstance(kind, set):
        holds, text = (
            not isinstance(value, list | dict) and value in kind,
            f"one of {', '.join(sorted(map(str, kind)))}",
        )
    elif isinstance(kind, re.Pattern):
        holds, text = isinstance(value, str) and kind.fullmatch(value), f"text of the form {kind.pattern}"
    elif isinstance(kind, range):
        holds, text = whole and value in kind, f"one of {kind[0]}, {kind[1]}, … {kind[-1]}"
    elif isinstance(kind, Between):
        holds, text = number and kind.least <= value <= kind.most, f"a number in {kind.least:g}..{kind.most:g}"
    elif kind is int:
        holds, text = whole and 0 <= value <= 2**53, "a whole number from 0 on"
    elif kind is float:
        holds, text = number and abs(value) < math.inf, "a number"
    else:
        holds = isinstance(value, kind)
        text = {str: "text", list: "a list", dict: "an object"}.get(kind, kind.__name__)
    return "" if holds else text
