"""Evaluates a model on a retrieval benchmark: every pair is scored once, then λ, γ and k are swept from the scores.

Writes into the workdir: results.json, results.md, logits.npz, scores/ (what a killed run resumes from), lists/ (neighbour
pickles as safe files) and, with sweep_memory, tradeoff-*.png and memory.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epy
from ml_collections import ConfigDict

from ames_jax import scenes
from ames_jax.data.shards import origin_of, read_about
from ames_jax.data.store import PackedStore
from ames_jax.extraction.sift import statistics_of
from ames_jax.model.released import known_facts, known_setting, load_model
from ames_jax.model.weights import refuse_other_descriptors
from ames_jax.report.methods import (
    baseline_matcher,
    is_one_model,
    measure_methods,
    methods_of,
    methods_table,
    trained_models,
)
from ames_jax.report.tables import descriptor_notes, fit_notes, markdown, result_rows, results_table
from ames_jax.retrieval.grid import GAMMAS, LAMBDAS, Counts, Grid
from ames_jax.retrieval.logits_file import PairLogits
from ames_jax.retrieval.matchers import ModelMatcher
from ames_jax.retrieval.opening import open_set
from ames_jax.retrieval.plans import Plan, measure_plans
from ames_jax.retrieval.refinement import refined_set
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import SweepRow, best_row, sweep, tune
from ames_jax.runtime.command_line import flatten
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file, write_json
from ames_jax.runtime.processes import is_lead

with epy.lazy_imports():  # draws
    from ames_jax.report import tradeoff


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs an evaluation and returns what it wrote to `results.json`.

    Of many processes, each scores its share of the queries; all get the result, and the lead one writes it.
    """
    if config.model and not is_one_model(config.model):
        return compare_matchers(config, workdir)
    grid = grid_of(config)
    _check_combination(config, grid)
    matcher = None if config.logits else _matcher(config)
    test = _open(config, config.dataset, matcher, workdir)
    keeper = _keeper(config, workdir)
    counts = counts_of(config)
    results: dict[str, Any] = {"dataset": test.name, "first_stage": _first_stage(test)}
    validation = None
    if config.tune_on:
        validation = _open(config, config.tune_on, matcher, workdir)
        pairs = PairLogits.made(validation, matcher, keeper, max(grid.rerank), counts)
        rows = sweep(validation, pairs.logits[..., None], grid)
        best = best_row(rows).setting
        grid = Grid(grid.rerank, (best.lam,), (best.gamma,))
        results["tuned_on"] = {
            "dataset": validation.name,
            "first_stage": _first_stage(validation),
            "chosen": {"lam": best.lam, "gamma": best.gamma},
            "rows": result_rows(rows, pairs),
        }
    pairs = (
        PairLogits.load(config.logits, test)
        if matcher is None
        else PairLogits.made(test, matcher, keeper, max(grid.rerank), counts)
    )
    rows = sweep(test, pairs.logits[..., None], grid)
    results |= {"model": pairs.model, "rows": result_rows(rows, pairs), **_sources(test), "config": flatten(config)}
    if config.sweep_memory:
        results["memory"] = _memory(config, keeper, matcher, validation, test, rows, workdir)
    if config.plan:
        opponent = baseline_matcher(matcher.packer, validation)
        plans, k = config.plan.split(), max(grid.rerank)
        results["plans"] = measure_plans(plans, keeper, matcher, opponent, validation, test, k, counts)
    if not is_lead():
        return results
    pairs.save(workdir / "logits.npz", test)
    write_json(workdir / "results.json", results)
    table = results_table(results)
    write_file(workdir / "results.md", table)
    print(f"{table}\nwritten to {workdir}: results.json, results.md, logits.npz")
    if config.plan:
        named = {"pairs": "share of pairs", "seconds": "s per query"}
        print(markdown(results["plans"], {key: key for key in results["plans"][0]} | named))
    tuned = bool(config.tune_on or config.lam or config.gamma)
    for note in [*descriptor_notes(test), *fit_notes(results, tuned=tuned)]:
        print(note)
    return results


def compare_matchers(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Several methods in one table, each at the λ, γ and threshold that `tune_on` prefers; what `results.json` holds.

    `config.model`: see `methods.methods_of`. Raises UserError without a data set to tune on.
    """
    if config.plan:
        raise UserError(
            f"--config.plan={config.plan} is of one model: --config.model={config.model} are several methods"
        )
    if not config.tune_on:
        raise UserError(
            f"--config.model={config.model}: several methods, and those without released λ and γ, are compared at settings "
            "chosen on --config.tune_on"
        )
    validation, test = (_open(config, name, None, workdir) for name in (config.tune_on, config.dataset))
    for name in trained_models(config.model):
        _refuse_other_descriptors(config, name)
    keeper = _keeper(config, workdir)
    counts, k = counts_of(config), max(_numbers(config, "rerank", int), default=0)
    if k < 1:
        raise UserError("--config.rerank is empty: say how many images to re-rank, e.g. 100")
    rows = measure_methods(methods_of(config.model, validation), keeper, validation, test, k, counts)
    results = {"dataset": test.name, "first_stage": _first_stage(test), "tuned_on": {"dataset": validation.name}}
    results |= {"model": config.model, "rows": rows, **_sources(test), "config": flatten(config)}
    if not is_lead():
        return results
    table = methods_table(test, rows, k, counts)
    write_json(workdir / "results.json", results)
    write_file(workdir / "results.md", table)
    print(f"{table}\nwritten to {workdir}: results.json, results.md")
    for note in descriptor_notes(test):
        print(note)
    return results


def grid_of(config: ConfigDict) -> Grid:
    """k, λ and γ of a configuration; empty λ or γ: those of the model, or the whole grid when they are to be tuned."""
    given = {key: _numbers(config, key, float) for key in ("lam", "gamma")}
    known: dict[str, Sequence[float]] = {}
    if config.tune_on:
        known = {"lam": LAMBDAS, "gamma": GAMMAS}
    elif config.model and not all(given.values()):
        setting = known_setting(config.model, known_facts(config.model))
        known = {key: [value] for key, value in zip(given, setting) if value is not None}
    for key, values in given.items():
        if not values and key not in known:
            raise UserError(
                f"--config.{key} is empty and {config.model or 'the model'} does not say: give a value, "
                "or a data set to choose it on (--config.tune_on)"
            )
    rerank = _numbers(config, "rerank", int)
    if not rerank:
        raise UserError("--config.rerank is empty: say how many images to re-rank, e.g. 100,400")
    return Grid(rerank, *(values or tuple(known[key]) for key, values in given.items()))


def counts_of(config: ConfigDict) -> Counts:
    """The numbers of descriptors of a configuration; raises UserError for one below 1."""
    for key in ("query_descriptors", "database_descriptors"):
        if config[key] < 1:
            raise UserError(f"--config.{key}={config[key]}: expected at least 1")
    return Counts(config.query_descriptors, config.database_descriptors)


def _keeper(config: ConfigDict, workdir: Path) -> ScoreKeeper:
    if not 0 < config.memory_gb < 2**20:  # NaN is neither
        raise UserError(f"--config.memory_gb={config.memory_gb:g}: expected a number above 0, in 2³⁰ bytes")
    return ScoreKeeper(workdir / "scores", int(config.memory_gb * 2**30))


def _numbers(config: ConfigDict, key: str, kind: Callable) -> tuple:
    text = str(config[key])
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"--config.{key}={text}: expected numbers with commas between them") from error


def _check_combination(config: ConfigDict, grid: Grid) -> None:
    """Raises UserError where keys do not go together, before anything is read or scored."""
    if not config.data_dir:
        raise UserError("--config.data_dir is empty: name the release's data folder, a prepared data set or a manifest")
    if config.logits and config.tune_on:
        raise UserError("--config.tune_on needs a model, since it scores that data set too; leave --config.logits out")
    if config.logits and config.sweep_memory:
        raise UserError("--config.sweep_memory scores other numbers of descriptors: leave --config.logits out")
    if config.sweep_memory and not config.tune_on and len(grid.lam) * len(grid.gamma) > 1:
        raise UserError("--config.sweep_memory takes one lam and one gamma: give them, or --config.tune_on")
    if config.plan and not config.tune_on:
        raise UserError(f"--config.plan={config.plan} needs a model, and --config.tune_on: all stages are tuned on it")
    for plan in config.plan.split():
        Plan.parse(plan, max(grid.rerank))
    if not (config.logits or config.model):
        raise UserError(
            "--config.model is empty: give a run or model directory, a released .pt file or a released name"
        )


def _matcher(config: ConfigDict) -> ModelMatcher:
    _refuse_other_descriptors(config, config.model)
    matcher = ModelMatcher(load_model(config.model), Path(config.model).name)
    if config.store and matcher.packer is None:
        raise UserError(
            f"--config.store={config.store} holds bits, which a full-precision model cannot read; leave it out"
        )
    return matcher


def _root(config: ConfigDict) -> Path:
    return scenes.build("landmarks") if config.data_dir == "landmarks" else Path(config.data_dir)


def _refuse_other_descriptors(config: ConfigDict, model: str) -> None:
    """Raises UserError where a model was trained on other descriptors than those of a prepared data set."""
    root = _root(config)
    if root.is_dir():
        refuse_other_descriptors(model, known_facts(model), read_about(root), statistics_of(root))


def _open(config: ConfigDict, dataset: str, matcher: ModelMatcher | None, workdir: Path) -> RetrievalSet:
    """The data set `dataset`; the store of the configuration, if any, belongs to `config.dataset` alone."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
    root = _root(config)
    store = config.store if dataset == config.dataset else ""
    data = open_set(root, dataset, config.backbone, config.first_stage, workdir / "lists", store)
    if config.refine:
        data = refined_set(data, config.refine)
    if isinstance(data.database, PackedStore) and matcher is not None:
        data.database.check_model(matcher.packer.fingerprint if matcher.packer else None)
    return data


def _memory(
    config: ConfigDict,
    keeper: ScoreKeeper,
    matcher: ModelMatcher,
    validation: RetrievalSet | None,
    test: RetrievalSet,
    rows: Sequence[SweepRow],
    workdir: Path,
) -> dict[str, Any]:
    """The memory sweep of the model at its one setting and, where there is a data set to tune it on, of hand-made matching."""
    largest = max((row.setting for row in rows), key=lambda setting: setting.k)
    compared = [(matcher, largest)]
    if config.match_kernel and validation is not None:
        kernel = baseline_matcher(matcher.packer, validation)
        tuned = tune(keeper, kernel, validation, k=largest.k, counts=counts_of(config))
        compared.append((kernel, tuned.setting))
    elif config.match_kernel:
        print(
            "hand-made matching left out: it has no released setting; name a data set to tune it on (--config.tune_on)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        return tradeoff.memory_sweep(
            keeper, compared, test, config.query_descriptors, workdir if is_lead() else Path(scratch)
        )


def _sources(data: RetrievalSet) -> dict[str, Any]:
    """Facts about the extraction of both sides, where they are known."""
    sides = {"query": origin_of(data.queries), "gallery": origin_of(data.database)}
    found = {side: facts for side, facts in sides.items() if facts}
    return {"extraction": found} if found else {}


def _first_stage(data: RetrievalSet) -> dict[str, Any]:
    return {"name": data.first_stage, **data.figures()}
