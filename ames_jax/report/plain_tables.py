"""Rows of a benchmark as a Markdown table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ames_jax.runtime.errors import UserError


def markdown(rows: Sequence[Mapping[str, Any]], headings: Mapping[str, str]) -> str:
    """A table of the keys of `headings` in their order; keys that every row lacks (absent or None) get no column."""
    keys = [key for key in headings if any(row.get(key) is not None for row in rows)]
    cells = [[headings[key] for key in keys], *([_cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    text = [[isinstance(row.get(key), str) for row in rows] for key in keys]
    pad = [str.ljust if any(column) else str.rjust for column in text]
    lines = ["| " + " | ".join(p(c, w) for p, c, w in zip(pad, line, widths)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if p is str.ljust else ":") for p, w in zip(pad, widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Writes results to `path` (None: nowhere), NaN as null; raises UserError where that cannot be."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(_plain(results), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json={path} cannot be written: {error.strerror}") from error


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}" if abs(value) >= 1e-3 else f"{value:.1e}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
