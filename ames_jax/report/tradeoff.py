"""The trade-off of AMES, retrieval quality against the memory of a database image: measured, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator

from ames_jax.report.comparison import KILOBYTE, STYLES, Comparison, Row, compare, format_bytes
from ames_jax.report.figures import INK, draw_level, new_figure, plain_axes
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.ranking import Setting
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import measure
from ames_jax.runtime.files import write_file
from ames_jax.runtime.progress import Progress

COUNTS = (10, 25, 50, 64, 100, 200, 400, 600)
HALO = [withStroke(linewidth=2.5, foreground="white")]


def memory_sweep(
    keeper: ScoreKeeper,
    matchers: Sequence[tuple[Matcher, Setting]],
    data: RetrievalSet,
    query_descriptors: int,
    workdir: Path,
) -> dict[str, Any]:
    """Measures every matcher at COUNTS descriptors; writes tradeoff-PROTOCOL.png and memory.md; returns the table's rows.

    Counts beyond what the database stores are left out. Each matcher keeps its one setting for all counts.
    """
    stored = data.database.read(np.arange(1), max(COUNTS)).count
    counts = [count for count in COUNTS if count <= stored] or [stored]
    work = [(matcher, setting, count) for matcher, setting in matchers for count in counts]
    with Progress("memory sweep", len(work), "measurements") as progress:
        measured = [
            measure(keeper, matcher, data, setting, Counts(query_descriptors, count))
            for matcher, setting, count in progress.over(work)
        ]
    comparisons = {protocol.name: compare(data, measured, protocol) for protocol in data.protocols}
    for name, comparison in comparisons.items():
        draw_tradeoff(comparison, workdir / f"tradeoff-{name}.png")
    write_file(workdir / "memory.md", "\n".join(map(markdown_table, comparisons.values())))
    return {name: table_rows(comparison) for name, comparison in comparisons.items()}


def draw_tradeoff(comparison: Comparison, path: str | Path) -> None:
    """Writes a PNG: metric (%) over bytes per database image (log), one line per matcher, database counts beside the points.

    The first stage alone and the ceiling of its shortlist are horizontal lines, 1 KB a vertical one; bars show the
    standard deviation over seeds.
    """
    with new_figure(path, 8.2, 5.0) as figure:
        axes = figure.add_subplot()
        main = {}
        for row in sorted(comparison.rows, key=lambda row: (len(row.scores), row.query_descriptors)):
            main[row.kind] = row
        for row in comparison.rows:
            _draw_row(axes, row, again=row is not main[row.kind])
        _draw_levels(axes, comparison)
        plain_axes(axes, "local descriptors stored per database image", f"{comparison.metric} (%)")
        _byte_axis(axes, comparison)
        axes.set_title(
            f"{comparison.data_set}\n{comparison.first_stage}, first {comparison.shortlist} re-ranked\n"
            "numbers at the points: descriptors per database image",
            loc="left",
        )
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 0.95), borderaxespad=0.2)


def _draw_row(axes: Axes, row: Row, again: bool) -> None:
    """One line. `again`: beside the main row of its kind it has the same colour, hollow diamonds and no counts."""
    counts = sorted(row.scores)
    stored = [row.stored_bytes[count] for count in counts]
    means = [row.mean(count) for count in counts]
    spreads = [row.spread(count) or 0.0 for count in counts]
    style = STYLES.get(row.kind, {"color": INK, "marker": "D", "linestyle": ":"})
    label = f"{row.name}\n({row.query_descriptors} query descriptors)"
    if again:
        style = {**style, "marker": "D", "linestyle": ":"}
    learned = row.kind in ("teacher", "student") and not again
    fill = style["color"] if learned else "white"
    axes.errorbar(stored, means, spreads if any(spreads) else None, label=label, **style, markerfacecolor=fill)
    if learned:
        for x, y, count in zip(stored, means, counts, strict=True):
            text = axes.annotate(
                str(count), (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8, color=style["color"]
            )
            text.set_path_effects(HALO)


def _draw_levels(axes: Axes, comparison: Comparison) -> None:
    levels = [(float(np.mean(comparison.global_only)), "first stage alone", "-")]
    if comparison.ceiling is not None:
        levels.append((comparison.ceiling, f"ceiling: recall of the first {comparison.shortlist}", ":"))
    for height, text, line in levels:
        draw_level(axes, height, text, line, path_effects=HALO)
    axes.axvline(KILOBYTE, color=INK, linewidth=1, linestyle="--")
    axes.annotate(
        "1 KB",
        (KILOBYTE, 0),
        (3, 4),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        fontsize=8,
    )


def _byte_axis(axes: Axes, comparison: Comparison) -> None:
    """Powers of two or four as ticks, in bytes and KB; room for all points and for the 1 KB line."""
    stored = [size for row in comparison.rows for size in row.stored_bytes.values()]
    low, high = min([*stored, KILOBYTE]) / 1.3, max([*stored, KILOBYTE]) * 1.3
    powers = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    axes.set_xticks(powers[:: 1 if len(powers) <= 9 else 2])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
