"""Joins the results of runs that differ in nothing but their seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ames_jax.report.comparison import Comparison, Row
from ames_jax.runtime.errors import UserError


def join_seeds(runs: Sequence[Path]) -> Comparison:
    """The comparison of several runs, each figure with one score per run.

    Args:
      runs: workdirs of finished training runs, with the `results.json` of `run_report.write_report`.

    Raises:
      UserError: a run without results, or runs that measured other things.
    """
    results = [_read(run) for run in runs]
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
        first["dataset"], "mAP", stage["name"], [stage["map"]], first["shortlist"], first["ceiling"],
        tuple(rows.values()),
    )  # fmt: skip


def _read(run: Path) -> dict[str, Any]:
    path = run / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no results of a finished training run: {error}") from error


def _measured(result: dict[str, Any]) -> list[Any]:
    keys = ("method", "query_descriptors", "database_descriptors", "bytes_per_image")
    rows = [[row[key] for key in keys] for row in result["rows"]]
    return [result["dataset"], result["split"], result["queries"], result["shortlist"], result["first_stage"], rows]
