"""Figures of a task from saved logits, for any λ, γ and k. NumPy only: nothing is scored again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ames_jax.retrieval.metrics import Protocol, protocol_score
from ames_jax.retrieval.ranking import Setting, SweepRow, best_row, ensemble, sweep
from ames_jax.retrieval.task import RetrievalTask
from ames_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Grid:
    """The settings of a sweep: every k with every λ with every γ."""

    rerank: tuple[int, ...]
    lam: tuple[float, ...]
    gamma: tuple[float, ...]

    def check(self) -> None:
        """Raises UserError for a setting that cannot be, before anything is scored."""
        nothing = np.zeros(0)
        for lam, gamma in itertools.product(self.lam, self.gamma):
            ensemble(nothing, nothing, lam, gamma)
        if min(self.rerank) < 1:
            raise UserError(f"rerank={min(self.rerank)}: re-rank at least 1 image a query")


def sweep_task(task: RetrievalTask, logits: np.ndarray, grid: Grid) -> list[SweepRow]:
    """All figures of the task for every setting of the grid, in the order k, λ, γ; logits float [Nq, C], NaN unscored.

    Only queries that a protocol counts need scores. Raises UserError where one of their pairs has none.
    """
    rows: dict[Setting, dict[str, float]] = {}
    for protocol in task.protocols:
        for row in _sweep_protocol(task, protocol, logits, grid):
            rows.setdefault(row.setting, {}).update(row.scores)
    return [SweepRow(setting, scores) for setting, scores in rows.items()]


def best_setting(rows: Sequence[SweepRow]) -> Setting:
    """The setting with the highest mean over the figures of a row; of equal ones the first."""
    means = [SweepRow(row.setting, {"mean": float(np.mean(list(row.scores.values())))}) for row in rows]
    return best_row(means).setting


def _sweep_protocol(task: RetrievalTask, protocol: Protocol, logits: np.ndarray, grid: Grid) -> list[SweepRow]:
    queries = np.flatnonzero(task.counted(protocol))
    judged = task.judged.of_queries(queries)
    every_query = replace(protocol, part=(None, None))
    junk = task.junk_columns(protocol, max(grid.rerank))
    return sweep(
        task.similarities[queries, : junk.shape[1]],
        logits[queries],
        lambda order: {protocol.name: protocol_score(judged.reordered(order), every_query)},
        k=grid.rerank,
        lam=grid.lam,
        gamma=grid.gamma,
        junk=junk[queries],
    )
