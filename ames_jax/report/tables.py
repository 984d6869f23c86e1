"""The result table, for people (Markdown) and for programs (rows of plain values)."""

from __future__ import annotations

import numpy as np

from ames_jax.report.comparison import KILOBYTE, Comparison, Method, format_bytes


def markdown_table(comparison: Comparison) -> str:
    """A heading with data set, first stage and ceiling; a row a method, a column a number of database descriptors.

    A cell holds the metric in percent (± standard deviation over seeds) and the bytes stored per database image; cells
    within 1 KB are bold.
    """
    header = ["re-ranked by", "query desc.", *(f"{count} db desc." for count in comparison.counts)]
    rows = [_cells(method, comparison.counts) for method in comparison.methods]
    base = f"{_figure(comparison.global_only)} · 0 B"
    rows.insert(0, ["nothing (global only)", "–", *[base] * len(comparison.counts)])
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)]), *map(_line, rows)]
    return "\n".join([*_heading(comparison), "", *lines, ""])


def table_rows(comparison: Comparison) -> list[dict]:
    """The same as plain values, for `results.json`: one dict a method and number of descriptors.

    Keys: method, kind, query_descriptors, database_descriptors, bytes_per_image, within_1_kb, mean and spread (percent,
    spread None for one seed), scores (one a seed). Global only comes first, with 0 descriptors.
    """
    base = Method("global only", "global", 0, 0, {0: comparison.global_only})
    return [
        {
            "method": method.name,
            "kind": method.kind,
            "query_descriptors": method.query_descriptors,
            "database_descriptors": count,
            "bytes_per_image": method.bytes_per_image(count),
            "within_1_kb": method.bytes_per_image(count) <= KILOBYTE,
            "mean": method.mean(count),
            "spread": method.spread(count),
            "scores": [float(score) for score in method.scores[count]],
        }
        for method in (base, *comparison.methods)
        for count in sorted(method.scores)
    ]


def _heading(comparison: Comparison) -> list[str]:
    ceiling = "" if comparison.ceiling is None else f"; its ceiling (recall) is {comparison.ceiling:.1f} %"
    seeds = max([len(comparison.global_only), *(len(s) for m in comparison.methods for s in m.scores.values())])
    spread = f" ± is the standard deviation over {seeds} seeds." if seeds > 1 else ""
    return [
        f"### {comparison.data_set}: {comparison.metric} (%)",
        "",
        f"First stage: {comparison.first_stage}. Re-ranked: its first {comparison.shortlist} images a query{ceiling}.",
        f"Beside each figure: bytes of local descriptors per database image; **bold**: within 1 KB.{spread}",
    ]


def _cells(method: Method, counts: list[int]) -> list[str]:
    cells = []
    for count in counts:
        if count not in method.scores:
            cells.append("–")
            continue
        stored = method.bytes_per_image(count)
        text = f"{_figure(method.scores[count])} · {format_bytes(stored)}"
        cells.append(f"**{text}**" if stored <= KILOBYTE else text)
    return [method.name, str(method.query_descriptors), *cells]


def _figure(scores) -> str:
    mean = f"{np.mean(scores):.1f}"
    return f"{mean} ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else mean


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
