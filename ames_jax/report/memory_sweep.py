"""The trade-off, measured: the same queries with ever fewer database descriptors, beside the match kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.model.matching import GAMMAS, THRESHOLDS
from ames_jax.report.comparison import Comparison
from ames_jax.report.comparison import Method as ReportMethod
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.report.tradeoff import draw_tradeoff
from ames_jax.retrieval.judgements import find_hits
from ames_jax.retrieval.methods import Method, ScoreKeeper
from ames_jax.retrieval.metrics import Protocol, percent, recall_at
from ames_jax.retrieval.ranking import Setting
from ames_jax.retrieval.sweeps import Grid, best_setting, sweep_task
from ames_jax.retrieval.task import RetrievalTask

COUNTS = (10, 25, 50, 64, 100, 200, 400, 600)
KERNEL_LAMBDAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Tuned:
    """A method and the setting that was chosen for it."""

    method: Method
    setting: Setting


def tune_kernel(
    task: RetrievalTask, keeper: ScoreKeeper, model: Method, k: int, query_descriptors: int, database_descriptors: int
) -> Tuned:
    """The match kernel on what `model` reads, its threshold, λ and γ chosen on `task` as the model's λ and γ are."""
    width = task.queries.read(np.arange(1), 1).features.shape[-1]
    candidates = []
    for threshold in THRESHOLDS:
        kernel = model.kernel(threshold, width)
        logits = keeper.logits(task, kernel, k, query_descriptors, database_descriptors)
        rows = sweep_task(task, logits, Grid((k,), KERNEL_LAMBDAS, GAMMAS))
        setting = best_setting(rows)
        scores = next(row.scores for row in rows if row.setting == setting)
        candidates.append((float(np.mean(list(scores.values()))), Tuned(kernel, setting)))
    return max(candidates, key=lambda candidate: candidate[0])[1]


def memory_sweep(
    task: RetrievalTask, keeper: ScoreKeeper, methods: list[Tuned], query_descriptors: int, workdir: Path
) -> dict[str, Any]:
    """Scores every method at COUNTS descriptors; writes tradeoff-PROTOCOL.png and memory.md; returns the table's rows.

    Counts beyond what the database stores are left out. Each method keeps its one setting for all counts.
    """
    stored = task.database.read(np.arange(1), max(COUNTS)).count
    counts = [count for count in COUNTS if count <= stored] or [stored]
    figures: dict[str, dict[int, Mapping[str, float]]] = {}
    for tuned in methods:
        setting = tuned.setting
        grid = Grid((setting.k,), (setting.lam,), (setting.gamma,))
        figures[tuned.method.name] = {
            count: sweep_task(task, keeper.logits(task, tuned.method, setting.k, query_descriptors, count), grid)[
                0
            ].scores
            for count in counts
        }
    comparisons = {
        protocol.name: _comparison(task, protocol, methods, figures, query_descriptors) for protocol in task.protocols
    }
    for name, comparison in comparisons.items():
        draw_tradeoff(comparison, workdir / f"tradeoff-{name}.png")
    text = "\n".join(markdown_table(comparison) for comparison in comparisons.values())
    (workdir / "memory.md").write_text(text, encoding="utf-8")
    return {name: table_rows(comparison) for name, comparison in comparisons.items()}


def _comparison(
    task: RetrievalTask,
    protocol: Protocol,
    methods: list[Tuned],
    figures: Mapping[str, Mapping[int, Mapping[str, float]]],
    query_descriptors: int,
) -> Comparison:
    k = methods[0].setting.k
    recall = recall_at(find_hits(task.judged, protocol.ok, protocol.junk), k)
    return Comparison(
        data_set=task.name,
        metric=protocol.name if protocol.name.startswith(("mAP", "R@")) else f"mAP, {protocol.name}",
        first_stage=task.first_stage,
        global_only=[task.first_stage_scores()[protocol.name]],
        shortlist=k,
        ceiling=percent(recall[slice(*protocol.part)]),
        methods=tuple(
            ReportMethod(
                tuned.method.name,
                tuned.method.kind,
                query_descriptors,
                tuned.method.bytes_per_descriptor,
                {count: [scores[protocol.name]] for count, scores in figures[tuned.method.name].items()},
            )
            for tuned in methods
        ),
    )
