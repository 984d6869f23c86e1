"""What an evaluation writes: results.json, results.md and logits.npz."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.retrieval.ranking import SweepRow
from ames_jax.retrieval.task import RetrievalTask
from ames_jax.runtime.errors import UserError


def result_rows(rows: Sequence[SweepRow], pairs: PairLogits) -> list[dict[str, Any]]:
    """The rows of `results.json`: setting, descriptors, bytes of a database image, figures in percent by protocol."""
    return [
        {
            "rerank": row.setting.k,
            "lam": row.setting.lam,
            "gamma": row.setting.gamma,
            "query_descriptors": pairs.query_descriptors,
            "database_descriptors": pairs.database_descriptors,
            "bytes_per_image": pairs.bytes_per_image,
            **row.scores,
        }
        for row in rows
    ]


def first_stage_facts(task: RetrievalTask) -> dict[str, Any]:
    """The first stage's name and its own figures."""
    return {"name": task.first_stage, **task.first_stage_scores()}


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes JSON; a figure over no query at all (NaN) becomes null."""
    path.write_text(json.dumps(_plain(results), indent=1) + "\n", encoding="utf-8")


def results_table(results: Mapping[str, Any]) -> str:
    """Markdown: the first stage alone, then every row."""
    stage = results["first_stage"]
    figures = [key for key in stage if key != "name"]
    keys = ["rerank", "lam", "gamma", "query_descriptors", "database_descriptors", "bytes_per_image"]
    header = ["re-ranked", "λ", "γ", "query desc.", "database desc.", "bytes an image", *figures]
    lines = [
        f"### {results['dataset']}: {results['model']}, after {stage['name']}",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " ---: |" * len(header),
        "| " + " | ".join(["first stage alone", *["–"] * 5, *(f"{stage[name]:.2f}" for name in figures)]) + " |",
    ]
    for row in results["rows"]:
        cells = [f"{row[key]:g}" for key in keys] + [f"{row[name]:.2f}" for name in figures]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class PairLogits:
    """Scores of a task's pairs: float32 [Nq, C], NaN where a pair has none; column j is column j of the task's lists.

    bytes_per_image: of the descriptors that a database image has in fact, where fewer are stored than asked for.
    """

    logits: np.ndarray
    model: str
    query_descriptors: int
    database_descriptors: int
    bytes_per_image: int

    def save(self, path: Path, task: RetrievalTask) -> None:
        """Writes `logits.npz`: the fields, and `indices` [Nq, C], `similarities` float32 [Nq, C] of the first stage's
        lists, `dataset` and `first_stage` (text)."""
        width = self.logits.shape[1]
        np.savez_compressed(
            path,
            **vars(self),
            indices=np.asarray(task.ranks[:, :width]),
            similarities=np.asarray(task.similarities[:, :width], np.float32),
            dataset=task.name,
            first_stage=task.first_stage,
        )

    @staticmethod
    def load(path: Path, task: RetrievalTask) -> PairLogits:
        """Reads `logits.npz`; raises UserError when it is missing, not such a file, or of other neighbour lists."""
        try:
            with np.load(path, allow_pickle=False) as file:
                fields = {name: file[name] for name in (*PairLogits.__dataclass_fields__, "indices")}
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"--config.logits={path} is not a logits.npz of `ames_jax.evaluate`: {error}") from error
        indices = fields.pop("indices")
        if indices.shape[0] != len(task.ranks) or not np.array_equal(indices, task.ranks[:, : indices.shape[1]]):
            raise UserError(f"--config.logits={path} was scored on other neighbour lists than those of {task.name}")
        logits = fields.pop("logits")
        return PairLogits(logits, **{name: value.item() for name, value in fields.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value.item() if isinstance(value, np.generic) else value
