"""Kinds of values that flags take: numbers within bounds, several with commas, sizes in bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, get_args

import cyclopts


def comma_separated(kind: type, tokens: Sequence[cyclopts.Token]) -> list:
    """Values of a flag such as --counts=50,64, given once with commas or several times; a converter for cyclopts.

    `Annotated[list[int], Parameter(converter=comma_separated)]`. Raises ValueError for what is not such a value.
    """
    (element,) = get_args(kind)
    return [element(part) for token in tokens for part in token.value.split(",") if part.strip()]


def _whole_number(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    # Left to itself, cyclopts cuts 2.5 down to 2, and does not know 1e6.
    number = float(tokens[0].value)
    if not number.is_integer():
        raise ValueError(f"expected a whole number such as 1000 or 1e6, found {tokens[0].value}")
    return int(number)


def size_in_bytes(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    """ "1KB" → 1024, "800" → 800, "1.5 MB" → 1572864 (1 KB = 1024 B, as in our tables); a converter for cyclopts.

    Raises ValueError for what is no size.
    """
    text = tokens[0].value
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not match or not 0 < float(match[1]) < 2**63:
        raise ValueError(f"expected a size such as 800B, 1KB or 2MB, found {text!r}")
    return round(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _within(least: float, most: float) -> cyclopts.Parameter:
    def check(_: type, value: float | Sequence[float] | None) -> None:
        values = value if isinstance(value, Sequence) else [] if value is None else [value]
        for number in values:
            if not least <= number <= most:
                raise ValueError(f"expected a number in {least:g}..{most:g}, found {number:g}")

    return cyclopts.Parameter(validator=check)


_WHOLE = cyclopts.Parameter(converter=_whole_number)
Count = Annotated[int, _WHOLE, _within(1, 2**40)]
CountOrZero = Annotated[int, _WHOLE, _within(0, 2**40)]
Counts = Annotated[list[int], cyclopts.Parameter(converter=comma_separated), _within(1, 2**40)]
Size = Annotated[int, cyclopts.Parameter(converter=size_in_bytes, show_default=lambda size: f"{size} B")]
Fraction = Annotated[float, _within(0, 1)]
Scale = Annotated[float, _within(0, 1e9)]
