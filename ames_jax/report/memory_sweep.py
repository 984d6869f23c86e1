"""The trade-off, measured: the same queries with ever fewer database descriptors, beside hand-made matching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.report.comparison import compare
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.report.tradeoff import draw_tradeoff
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.ranking import Setting
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import measure
from ames_jax.runtime.files import write_file
from ames_jax.runtime.progress import Progress

COUNTS = (10, 25, 50, 64, 100, 200, 400, 600)


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
