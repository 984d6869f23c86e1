"""A comparison of matchers, of one run or of several seeds: the one input of the table and of the trade-off plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.retrieval.metrics import Protocol
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import Measured
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json

KILOBYTE = 1024
# Colours of Okabe and Ito, which colour-blind readers tell apart; line and marker differ as well.
STYLES = {
    "teacher": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "student": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "kernel on floats": {"color": "#56B4E9", "marker": "^", "linestyle": "--"},
    "kernel on bits": {"color": "#E69F00", "marker": "v", "linestyle": "--"},
}
# What `join_seeds` reads of the results of a training run.
RESULTS = {
    "dataset": str, "split": str, "queries": int, "shortlist": int, "ceiling": float | None,
    "first_stage": {"name": str, "map": float},
    "rows": [
        {
            "method": str, "kind": str, "query_descriptors": int, "database_descriptors": int,
            "bytes_per_image": int, "mean": float,
        }
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One way to re-rank, measured at several numbers of database descriptors.

    name: as it shall be printed. kind: a key of STYLES, for colour and marker. query_descriptors: Q.
    stored_bytes: database descriptors T → bytes of one image. scores: T → metric in percent, one entry per seed (one
    entry: no spread is shown).
    """

    name: str
    kind: str
    query_descriptors: int
    stored_bytes: Mapping[int, int]
    scores: Mapping[int, Sequence[float]]

    def mean(self, count: int) -> float:
        """Mean over the seeds, percent."""
        return float(np.mean(self.scores[count]))

    def spread(self, count: int) -> float | None:
        """Standard deviation over the seeds (n − 1), percent; None for a single seed."""
        return float(np.std(self.scores[count], ddof=1)) if len(self.scores[count]) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Matchers beside each other on one data set and one first stage.

    data_set: its name, printed everywhere. metric: e.g. "mAP". first_stage: name of the global descriptor or list.
    global_only: metric of the first stage, percent, one entry per seed. shortlist: images re-ranked per query.
    ceiling: recall of that shortlist in percent, what a perfect re-ranking would bring to the top; None if unknown.
    """

    data_set: str
    metric: str
    first_stage: str
    global_only: Sequence[float]
    shortlist: int
    ceiling: float | None
    rows: tuple[Row, ...]

    @property
    def counts(self) -> list[int]:
        """All numbers of database descriptors that any matcher was measured at, ascending."""
        return sorted({count for row in self.rows for count in row.scores})


def compare(data: RetrievalSet, measured: Iterable[Measured], protocol: Protocol) -> Comparison:
    """Measurements on a set, compared in one protocol: one row per matcher and number of query descriptors, in their order."""
    rows: dict[tuple[str, int], Row] = {}
    for found in measured:
        matcher, (queries, count) = found.matcher, found.counts
        row = rows.setdefault((matcher.name, queries), Row(matcher.name, matcher.kind, queries, {}, {}))
        row.stored_bytes[count], row.scores[count] = found.stored_bytes, [found.figures[protocol.name]]
        k = found.setting.k
    metric = protocol.name if protocol.name.startswith(("mAP", "R@")) else f"mAP, {protocol.name}"
    first = [data.figures()[protocol.name]]
    return Comparison(data.name, metric, data.first_stage, first, k, data.ceiling(k, protocol), tuple(rows.values()))


def join_seeds(runs: Sequence[Path]) -> Comparison:
    """The comparison of several runs, each figure with one score per run.

    Args:
      runs: workdirs of finished training runs, with the `results.json` of `run_report.write_report`.

    Raises:
      UserError: a run without results, or runs that measured other things.
    """
    results = [_results_of(run) for run in runs]
    first = results[0]
    for run, other in zip(runs[1:], results[1:]):
        if _measured(other) != _measured(first):
            raise UserError(
                f"{run} and {runs[0]} measured different data, shortlists, methods or counts: they cannot be joined"
            )
    scores = [[row["mean"] for row in result["rows"]] for result in results]
    rows: dict[tuple[str, int], Row] = {}
    for i, figures in enumerate(first["rows"]):
        count = figures["database_descriptors"]
        if not count:
            continue
        key = figures["method"], figures["query_descriptors"]
        row = rows.setdefault(key, Row(key[0], figures["kind"], key[1], {}, {}))
        row.stored_bytes[count], row.scores[count] = figures["bytes_per_image"], [one[i] for one in scores]
    stage = first["first_stage"]
    return Comparison(
        first["dataset"],
        "mAP",
        stage["name"],
        [stage["map"]],
        first["shortlist"],
        first["ceiling"],
        tuple(rows.values()),
    )


def _results_of(run: Path) -> dict[str, Any]:
    """The results that `run_report.write_report` wrote; raises UserError, naming the key, where a run has no such results."""
    path = run / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: no results of a finished training run")
    return read_json(path, keys=RESULTS)


def _measured(result: dict[str, Any]) -> list[Any]:
    keys = ("method", "query_descriptors", "database_descriptors", "bytes_per_image")
    rows = [[row[key] for key in keys] for row in result["rows"]]
    return [result["dataset"], result["split"], result["queries"], result["shortlist"], result["first_stage"], rows]


def format_bytes(count: float) -> str:
    """128 → "128 B", 12800 → "12.5 KB", 1638400000 → "1.53 GB" (1 KB = 1024 B)."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < KILOBYTE or unit == "TB":
            break
        count /= KILOBYTE
    if unit == "B":
        return f"{count:.0f} B"
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
