"""Evaluates a model on a retrieval benchmark: every pair is scored once, then λ, γ and k are swept from the scores.

Writes into the workdir: results.json, results.md, logits.npz, scores/ (what a killed run resumes from), lists/ (neighbour
pickles as safe files) and, with sweep_memory, tradeoff-*.png and memory.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ames_jax import scenes
from ames_jax.data.store import PackedStore
from ames_jax.model.ames import RELEASED
from ames_jax.model.released import load_model
from ames_jax.report.memory_sweep import memory_sweep
from ames_jax.retrieval.grid import GAMMAS, LAMBDAS, Counts, Grid
from ames_jax.retrieval.matchers import KernelMatcher, ModelMatcher
from ames_jax.retrieval.opening import open_set
from ames_jax.retrieval.refinement import refined_set
from ames_jax.retrieval.scores import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import SweepRow, best_row, sweep, tune
from ames_jax.runtime.command_line import flatten
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file, write_json
from ames_jax.runtime.processes import is_lead


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs an evaluation and returns what it wrote to `results.json`.

    Of many processes, each scores its share of the queries; all get the result, and the lead one writes it.
    """
    grid = grid_of(config)
    _check_combination(config, grid)
    matcher = None if config.logits else _matcher(config)
    test = _open(config, config.dataset, matcher, workdir)
    keeper = ScoreKeeper(workdir / "scores", int(config.memory_gb * 2**30))
    results: dict[str, Any] = {"dataset": test.name, "first_stage": _first_stage(test)}
    validation = None
    if config.tune_on:
        validation = _open(config, config.tune_on, matcher, workdir)
        pairs = PairLogits.made(config, validation, matcher, keeper, grid)
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
        else PairLogits.made(config, test, matcher, keeper, grid)
    )
    rows = sweep(test, pairs.logits[..., None], grid)
    results |= {"model": pairs.model, "rows": result_rows(rows, pairs), "config": flatten(config)}
    if config.sweep_memory:
        results["memory"] = _memory(config, keeper, matcher, validation, test, rows, workdir)
    if not is_lead():
        return results
    pairs.save(workdir / "logits.npz", test)
    write_json(workdir / "results.json", results)
    table = results_table(results)
    write_file(workdir / "results.md", table)
    print(f"{table}\nwritten to {workdir}: results.json, results.md, logits.npz")
    return results


def grid_of(config: ConfigDict) -> Grid:
    """k, λ and γ of a configuration; empty λ or γ: the released model's, or the whole grid when they are to be tuned."""
    given = {key: _numbers(config, key, float) for key in ("lam", "gamma")}
    name = Path(config.model).stem
    known = dict(zip(("lam", "gamma"), ([value] for value in RELEASED.get(name, ())), strict=False))
    if config.tune_on:
        known = {"lam": LAMBDAS, "gamma": GAMMAS}
    for key, values in given.items():
        if not values and key not in known:
            raise UserError(
                f"--config.{key} is empty and {name or 'the model'} is not a released model: give a value, "
                "or a data set to choose it on (--config.tune_on)"
            )
    rerank = _numbers(config, "rerank", int)
    if not rerank:
        raise UserError("--config.rerank is empty: say how many images to re-rank, e.g. 100,400")
    return Grid(rerank, *(values or tuple(known[key]) for key, values in given.items()))


def counts_of(config: ConfigDict) -> Counts:
    """The numbers of descriptors of a configuration."""
    return Counts(config.query_descriptors, config.database_descriptors)


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
    if not (config.logits or config.model):
        raise UserError(
            "--config.model is empty: give a run or model directory, a released .pt file or a released name"
        )


def _matcher(config: ConfigDict) -> ModelMatcher:
    matcher = ModelMatcher(load_model(config.model), Path(config.model).name)
    if config.store and matcher.packer is None:
        raise UserError(
            f"--config.store={config.store} holds bits, which a full-precision model cannot read; leave it out"
        )
    return matcher


def _open(config: ConfigDict, dataset: str, matcher: ModelMatcher | None, workdir: Path) -> RetrievalSet:
    """The data set `dataset`; the store of the configuration, if any, belongs to `config.dataset` alone."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
    root = scenes.build("landmarks") if config.data_dir == "landmarks" else Path(config.data_dir)
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
    """The memory sweep of the model at its one setting and, where there is a data set to tune it on, of the match kernel."""
    largest = max((row.setting for row in rows), key=lambda setting: setting.k)
    compared = [(matcher, largest)]
    if config.match_kernel and validation is not None:
        kernel = opponent(matcher, validation)
        tuned = tune(keeper, kernel, validation, k=largest.k, counts=counts_of(config))
        compared.append((kernel, tuned.setting))
    elif config.match_kernel:
        print("match kernel left out: it has no released setting; name a data set to tune it on (--config.tune_on)")
    with tempfile.TemporaryDirectory() as scratch:
        return memory_sweep(keeper, compared, test, config.query_descriptors, workdir if is_lead() else Path(scratch))


def opponent(matcher: ModelMatcher, data: RetrievalSet) -> KernelMatcher:
    """The match kernel on what a model reads: its bits, or floats whitened with statistics of the set's training images.

    A set without training images lends those of its database, and the name says so.
    """
    if matcher.packer is not None:
        return KernelMatcher("match kernel on bits", packer=matcher.packer)
    whitened = "" if data.training else ", whitened on the database"
    return KernelMatcher.on_floats(f"match kernel on floats{whitened}", data.training or data.database)


def _first_stage(data: RetrievalSet) -> dict[str, Any]:
    return {"name": data.first_stage, **data.figures()}


@dataclass(frozen=True)
class PairLogits:
    """Scores of a set's pairs: float32 [Nq, C], NaN where a pair has none; column j is column j of the set's lists.

    bytes_per_image: of the descriptors that a database image has in fact, where fewer are stored than asked for.
    """

    logits: np.ndarray
    model: str
    query_descriptors: int
    database_descriptors: int
    bytes_per_image: int

    @staticmethod
    def made(
        config: ConfigDict, data: RetrievalSet, matcher: ModelMatcher, keeper: ScoreKeeper, grid: Grid
    ) -> PairLogits:
        """The scores that the largest k of the grid needs."""
        counts = counts_of(config)
        scores = keeper.scores(data, matcher, max(grid.rerank), counts)
        stored = data.database.read(np.arange(1), counts.database).count
        return PairLogits(scores[..., 0], matcher.name, *counts, matcher.stored_bytes(stored))

    def save(self, path: Path, data: RetrievalSet) -> None:
        """Writes `logits.npz`: the fields, and `indices` [Nq, C], `similarities` float32 [Nq, C] of the first stage's
        lists, `dataset` and `first_stage` (text)."""
        width = self.logits.shape[1]
        np.savez_compressed(
            path,
            **vars(self),
            indices=np.asarray(data.ranks[:, :width]),
            similarities=np.asarray(data.similarities[:, :width], np.float32),
            dataset=data.name,
            first_stage=data.first_stage,
        )

    @staticmethod
    def load(path: str, data: RetrievalSet) -> PairLogits:
        """Reads `logits.npz`; raises UserError when it is missing, not such a file, or of other neighbour lists."""
        try:
            with np.load(path, allow_pickle=False) as file:
                fields = {name: file[name] for name in (*PairLogits.__dataclass_fields__, "indices")}
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"--config.logits={path} is not a logits.npz of `ames_jax.evaluate`: {error}") from error
        indices = fields.pop("indices")
        if indices.shape[0] != len(data.ranks) or not np.array_equal(indices, data.ranks[:, : indices.shape[1]]):
            raise UserError(f"--config.logits={path} was scored on other neighbour lists than those of {data.name}")
        logits = fields.pop("logits")
        return PairLogits(logits, **{name: value.item() for name, value in fields.items()})


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
            **row.figures,
        }
        for row in rows
    ]


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
