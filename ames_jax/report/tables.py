"""Tables: a comparison for people (Markdown) and for programs (rows of plain values), and rows of any benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ames_jax.report.comparison import KILOBYTE, Comparison, Row, format_bytes


def markdown_table(comparison: Comparison) -> str:
    """A heading with data set, first stage and ceiling; one row per matcher, one column per number of descriptors.

    A cell holds the metric in percent (± standard deviation over seeds) and the bytes stored per database image; cells
    within 1 KB are bold.
    """
    counts = comparison.counts
    base = f"{_figure(comparison.global_only)} · 0 B"
    lines = [
        ["re-ranked by", "query desc.", *(f"{count} db desc." for count in counts)],
        ["---", *["---:"] * (len(counts) + 1)],
        ["nothing (global only)", "–", *[base] * len(counts)],
        *([row.name, str(row.query_descriptors), *(_cell(row, count) for count in counts)] for row in comparison.rows),
    ]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*_heading(comparison), "", *table, ""])


def table_rows(comparison: Comparison) -> list[dict]:
    """The same as plain values, for `results.json`: one dict per matcher and number of descriptors.

    Keys: method, kind, query_descriptors, database_descriptors, bytes_per_image, within_1_kb, mean and spread (percent,
    spread None for one seed), scores (one per seed). Global only comes first, with 0 descriptors.
    """
    base = Row("global only", "global", 0, {0: 0}, {0: comparison.global_only})
    return [
        {
            "method": row.name,
            "kind": row.kind,
            "query_descriptors": row.query_descriptors,
            "database_descriptors": count,
            "bytes_per_image": row.stored_bytes[count],
            "within_1_kb": row.stored_bytes[count] <= KILOBYTE,
            "mean": row.mean(count),
            "spread": row.spread(count),
            "scores": [float(score) for score in row.scores[count]],
        }
        for row in (base, *comparison.rows)
        for count in sorted(row.scores)
    ]


def markdown(rows: Sequence[Mapping[str, Any]], headings: Mapping[str, str]) -> str:
    """A table of the keys of `headings` in their order; keys that every row lacks (absent or None) get no column."""
    keys = [key for key in headings if any(row.get(key) is not None for row in rows)]
    cells = [[headings[key] for key in keys], *([_text(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    text = [[isinstance(row.get(key), str) for row in rows] for key in keys]
    pad = [str.ljust if any(column) else str.rjust for column in text]
    lines = ["| " + " | ".join(p(c, w) for p, c, w in zip(pad, line, widths)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if p is str.ljust else ":") for p, w in zip(pad, widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _heading(comparison: Comparison) -> list[str]:
    ceiling = "" if comparison.ceiling is None else f"; its ceiling (recall) is {comparison.ceiling:.1f} %"
    seeds = max([len(comparison.global_only), *(len(s) for row in comparison.rows for s in row.scores.values())])
    spread = f" ± is the standard deviation over {seeds} seeds." if seeds > 1 else ""
    return [
        f"### {comparison.data_set}: {comparison.metric} (%)",
        "",
        f"First stage: {comparison.first_stage}. Re-ranked: its first {comparison.shortlist} images per query{ceiling}.",
        f"Beside each figure: bytes of local descriptors per database image; **bold**: within 1 KB.{spread}",
    ]


def _cell(row: Row, count: int) -> str:
    if count not in row.scores:
        return "–"
    text = f"{_figure(row.scores[count])} · {format_bytes(row.stored_bytes[count])}"
    return f"**{text}**" if row.stored_bytes[count] <= KILOBYTE else text


def _figure(scores: Sequence[float]) -> str:
    mean = f"{np.mean(scores):.1f}"
    return f"{mean} ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else mean


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}" if abs(value) >= 1e-3 else f"{value:.1e}"
