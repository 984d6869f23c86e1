"""Evaluates a model on a retrieval benchmark: every pair is scored once, then λ, γ and k are swept from the scores.

Writes into the workdir: results.json, results.md, logits.npz, scores/ (what a killed run resumes from), lists/ (neighbour
pickles as safe files) and, with sweep_memory, tradeoff-*.png and memory.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ames_jax.data.store import PackedStore
from ames_jax.model.released import load_model
from ames_jax.report.memory_sweep import Tuned, memory_sweep, tune_kernel
from ames_jax.retrieval.layouts import open_task
from ames_jax.retrieval.methods import Method, ScoreKeeper
from ames_jax.retrieval.options import grid_of
from ames_jax.retrieval.ranking import SweepRow
from ames_jax.retrieval.results import PairLogits, first_stage_facts, result_rows, results_table, write_results
from ames_jax.retrieval.sweeps import Grid, best_setting, sweep_task
from ames_jax.retrieval.task import RetrievalTask
from ames_jax.runtime import processes
from ames_jax.runtime.command_line import flatten
from ames_jax.runtime.errors import UserError
from ames_jax.scenes import landmarks


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs an evaluation and returns what it wrote to `results.json`.

    Of many processes, each scores its share of the queries; all get the result, and the lead one writes it.
    """
    grid = grid_of(config)
    method = None if config.logits else _method(config)
    task = _open(config, config.dataset, method, workdir)
    keeper = ScoreKeeper(_made(workdir) / "scores", int(config.memory_gb * 2**30))
    results: dict[str, Any] = {"dataset": task.name, "first_stage": first_stage_facts(task)}
    if config.tune_on:
        results["tuned_on"], grid = _tune(config, method, keeper, grid)
    pairs = PairLogits.load(Path(config.logits), task) if method is None else _score(config, task, method, keeper, grid)
    rows = sweep_task(task, pairs.logits, grid)
    results |= {"model": pairs.model, "rows": result_rows(rows, pairs), "config": flatten(config)}
    if config.sweep_memory:
        methods = _methods_to_compare(config, method, keeper, rows)
        with tempfile.TemporaryDirectory() as scratch:
            pictures = workdir if processes.is_lead() else Path(scratch)
            results["memory"] = memory_sweep(task, keeper, methods, config.query_descriptors, pictures)
    if not processes.is_lead():
        return results
    pairs.save(workdir / "logits.npz", task)
    write_results(workdir / "results.json", results)
    table = results_table(results)
    (workdir / "results.md").write_text(table, encoding="utf-8")
    print(f"{table}\nwritten to {workdir}: results.json, results.md, logits.npz")
    return results


def _open(config: ConfigDict, dataset: str, method: Method | None, workdir: Path) -> RetrievalTask:
    """The data set `dataset`; the store of the configuration, if any, belongs to `config.dataset` alone."""
    if not config.data_dir:
        raise UserError("--config.data_dir is empty: name the release's data folder, a prepared data set or a manifest")
    root = landmarks.build() if config.data_dir == "landmarks" else Path(config.data_dir)
    store = config.store if dataset == config.dataset else ""
    if store and method is not None and method.packer is None:
        raise UserError(f"--config.store={store} holds bits, which a full-precision model cannot read; leave it out")
    task = open_task(root, dataset, config.backbone, config.first_stage, _made(workdir) / "lists", store)
    if isinstance(task.database, PackedStore) and method is not None:
        task.database.check_model(method.packer.fingerprint if method.packer else None)
    return task


def _method(config: ConfigDict) -> Method:
    if not config.model:
        raise UserError(
            "--config.model is empty: give a run or model directory, a released .pt file or a released name"
        )
    return Method.of_model(load_model(config.model), Path(config.model).name)


def _made(workdir: Path) -> Path:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
    return workdir


def _score(config: ConfigDict, task: RetrievalTask, method: Method, keeper: ScoreKeeper, grid: Grid) -> PairLogits:
    asked, wanted = config.query_descriptors, config.database_descriptors
    logits = keeper.logits(task, method, max(grid.rerank), asked, wanted)
    stored = task.database.read(np.arange(1), wanted).count
    return PairLogits(logits, method.name, asked, wanted, stored * method.bytes_per_descriptor)


def _tune(config: ConfigDict, method: Method | None, keeper: ScoreKeeper, grid: Grid) -> tuple[dict[str, Any], Grid]:
    """Chooses one λ and γ for each k on `config.tune_on`; what that gave, and the grid that is left."""
    if method is None:
        raise UserError("--config.tune_on needs a model, since it scores that data set too; leave --config.logits out")
    task = _open(config, config.tune_on, method, keeper.folder.parent)
    pairs = _score(config, task, method, keeper, grid)
    rows = sweep_task(task, pairs.logits, grid)
    chosen = best_setting(rows)
    facts = {
        "dataset": task.name,
        "first_stage": first_stage_facts(task),
        "chosen": {"lam": chosen.lam, "gamma": chosen.gamma},
        "rows": result_rows(rows, pairs),
    }
    return facts, replace(grid, lam=(chosen.lam,), gamma=(chosen.gamma,))


def _methods_to_compare(
    config: ConfigDict, method: Method | None, keeper: ScoreKeeper, rows: Sequence[SweepRow]
) -> list[Tuned]:
    """The model at its one setting and, where there is a data set to tune it on, the match kernel."""
    if method is None:
        raise UserError("--config.sweep_memory scores other numbers of descriptors: leave --config.logits out")
    if len({(row.setting.lam, row.setting.gamma) for row in rows}) > 1:
        raise UserError("--config.sweep_memory takes one lam and one gamma: give them, or --config.tune_on")
    largest = max(rows, key=lambda row: row.setting.k).setting
    methods = [Tuned(method, largest)]
    if config.match_kernel and config.tune_on:
        task = _open(config, config.tune_on, method, keeper.folder.parent)
        asked = (config.query_descriptors, config.database_descriptors)
        methods.append(tune_kernel(task, keeper, method, largest.k, *asked))
    elif config.match_kernel:
        print("match kernel left out: it has no released setting; name a data set to tune it on (--config.tune_on)")
    return methods
