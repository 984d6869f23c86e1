"""Runs that differ in their seed alone become one table with spreads."""

import json

import pytest

from ames_jax.evaluate import main
from ames_jax.report.comparison import Comparison, Row, join_seeds
from ames_jax.report.curves import training_run
from ames_jax.report.tables import table_rows
from ames_jax.runtime.errors import UserError


def write_run(folder, score, queries=10):
    row = Row("student", "student", 100, {8: 128, 64: 1024}, {8: [score], 64: [score + 5]})
    comparison = Comparison("synthetic", "mAP", "VLAD", [50.0], 50, 80.0, (row,))
    folder.mkdir()
    results = {
        "dataset": "synthetic", "split": "test", "queries": queries, "first_stage": {"name": "VLAD", "map": 50.0},
        "shortlist": 50, "ceiling": 80.0, "rows": table_rows(comparison),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_scores_of_all_runs_stand_in_one_comparison(tmp_path, capsys):
    runs = [write_run(tmp_path / name, score) for name, score in (("a", 60.0), ("b", 62.0), ("c", 64.0))]
    [row] = join_seeds(runs).rows
    assert row.scores == {8: [60.0, 62.0, 64.0], 64: [65.0, 67.0, 69.0]}
    assert row.stored_bytes[64] == 1024
    assert main(["seeds", *map(str, runs), f"--out={tmp_path / 'joined'}"]) == 0
    assert "**67.0 ± 2.0 · 1 KB**" in capsys.readouterr().out
    assert (tmp_path / "joined" / "tradeoff.png").stat().st_size > 5000


def test_runs_that_measured_other_things_are_refused(tmp_path):
    with pytest.raises(UserError, match="measured different data"):
        join_seeds([write_run(tmp_path / "a", 60.0), write_run(tmp_path / "b", 60.0, queries=11)])
    with pytest.raises(UserError, match=r"nothing.results.json: no results"):
        join_seeds([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", None), ("rows", [3]), ("rows", [{}]), ("queries", "ten"), ("first_stage", []),
        ("first_stage", {"name": "VLAD"}),
        ("dataset", None), ("shortlist", -1), ("ceiling", "x"),
    ],
)  # fmt: skip
def test_damaged_results_are_named(tmp_path, key, value):
    path = write_run(tmp_path / "a", 60.0) / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"a.results.json: .*{key}"):
        join_seeds([tmp_path / "a", write_run(tmp_path / "b", 60.0)])
    path.write_text("[]")
    with pytest.raises(UserError, match=r"a.results.json: expected a JSON object, found list"):
        join_seeds([tmp_path / "a"])


def test_lines_of_other_than_numbers_draw_nothing(tmp_path):
    lines = [
        {"step": 1, "loss": "x"},
        {"step": 2, "loss": 1.0},
        {"step": "3", "loss": 1.0},
        [4],
        {"step": 5, "validation_map": None},
    ]
    lines += [{"step": 6, "loss": 0.5, "accuracy": 0.6}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = training_run("one", tmp_path)
    assert (run.loss.steps, run.accuracy.steps, run.validation.steps) == ([2, 6], [6], [])


def test_curves_of_named_runs(tmp_path):
    lines = [{"step": 1, "loss": 1.0, "accuracy": 0.5}, {"step": 1, "validation_map": 40.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["curves", f"one={tmp_path}", f"--out={tmp_path / 'curves.png'}"]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 5000
    with pytest.raises(UserError, match="expected NAME=DIR"):
        main(["curves", str(tmp_path), f"--out={tmp_path / 'curves.png'}"])
    with pytest.raises(UserError, match=r"--out=curves.xyz: expected a name that ends in .png"):
        main(["curves", f"one={tmp_path}", "--out=curves.xyz"])
