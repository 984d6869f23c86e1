"""`python -m ames_jax.benchmark`: every benchmark on tiny shapes, with and without PyTorch."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ames_jax import benchmark
from ames_jax.benchmarks import (
    evaluation_speed,
    extraction_speed,
    flops,
    harness,
    scoring_speed,
    training_speed,
)
from ames_jax.benchmarks.flags import DataFlags, EvaluateFlags, ExtractFlags, Flags, ScoreFlags, TrainFlags
from ames_jax.benchmarks.harness import Case, Harness, TorchProcess, matmul_peak
from ames_jax.data.shards import open_split
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.vit import ViTConfig
from ames_jax.model.ames import AMESConfig
from ames_jax.model.elvis import ELViSConfig
from ames_jax.report.tables import markdown
from ames_jax.retrieval.scorer import score_shortlist
from ames_jax.runtime.errors import UserError

SMALL = AMESConfig(descriptor_width=24, model_width=32, heads=2, layers=2, feed_forward=48)
# One layer compiles faster; the parity of deeper models has its own tests.
TEACHER = AMESConfig(descriptor_width=24, model_width=32, heads=2, layers=1, feed_forward=48)
STUDENT = AMESConfig(descriptor_width=24, bits=16, model_width=32, heads=2, layers=1, feed_forward=48)
SCORE = {"shapes": ((12, 7),), "shortlist": (9, 16), "queries": 2, "repeats": 1, "skip_first_call": True}
BESIDE_TORCH = {**SCORE, "shortlist": (9,), "torch_pairs": 5}
TRAIN = {"shapes": ((10, 6),), "triplets": 8, "descriptors": 12, "repeats": 1}
EVALUATE = {"shapes": ((8, 5),), "queries": 3, "gallery": 60, "rerank": 30, "stored": 10}
EXTRACT = {"pictures": 3, "side": (28,), "repeats": 1}
DATA = {"images": 60, "descriptors": 4, "width": 8, "triplets": 5, "batches": 2, "step": 0.001}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No large matrix product; no cache in the home folder."""
    monkeypatch.setattr(harness, "matmul_peak", lambda dtype: 1e11)
    monkeypatch.setattr(benchmark.cache, "start", lambda: None)


@pytest.fixture
def torch_python():
    """A Python for PyTorch's side: this one, in a process of its own."""
    for package in ("torch", "h5py"):
        pytest.importorskip(package)
    return sys.executable


@pytest.fixture
def torch_here(torch_python, monkeypatch):
    """The same, but the jobs run in this process: starting Python and importing torch takes longer than they do."""
    monkeypatch.syspath_prepend(Path(harness.__file__).parent)
    main = importlib.import_module("torch_jobs").main
    importlib.import_module("torch").set_num_threads(1)  # more would spin while they wait for each other

    def run(command, **_):
        if command[1] != "-c":
            monkeypatch.setattr(sys, "argv", command[1:])
            main()
        return subprocess.CompletedProcess(command, 0, "torch\n", "")

    monkeypatch.setattr(harness.subprocess, "run", run)
    return torch_python


def test_score_alone(capsys):
    results = scoring_speed.measure(ScoreFlags(**SCORE, torch_python="none"), SMALL)
    assert [(r["shape"], r["shortlist"]) for r in results["rows"]] == [("12×7", 9), ("12×7", 16)]
    row = results["rows"][1]
    work = flops.shortlist(SMALL, 12, 7, 16)
    assert row["gflop_per_pair"] == pytest.approx(work / 16 / 1e9)
    assert row["gflops"] == pytest.approx(row["pairs_per_second"] * work / 16 / 1e9)
    assert row["share"] == pytest.approx(row["gflops"] * 1e9 / (1e11 * 8))
    assert row["peak_mb"] > 0
    text = capsys.readouterr().out
    assert "| pairs/s |" in text
    assert "PyTorch pairs/s" not in text
    assert "left out" in text


def test_score_of_elvis(torch_here):
    config = ELViSConfig(descriptor_width=24, model_width=16)
    flags = ScoreFlags(**BESIDE_TORCH, matcher="elvis", torch_python=torch_here)
    for row in scoring_speed.measure(flags, config)["rows"]:
        assert row["difference"] <= 1e-6 * (12 + 7)
        # Every database descriptor is projected (24 × 16), compared with all of the query and, twice in each of ten
        # iterations, weighed; the dust bins' network has 16 × 16 and 16, the votes' 2 × 16 per descriptor.
        assert row["gflop_per_pair"] * 1e9 > 2 * 7 * (24 * 16 + 12 * 16 + 20 * 12)
    with pytest.raises(UserError, match="--dtype=bfloat16: ELViS"):
        scoring_speed.measure(dataclasses.replace(flags, dtype="bfloat16"), config)


def test_score_beside_torch(torch_python, capsys):
    results = scoring_speed.measure(ScoreFlags(**BESIDE_TORCH, torch_python=torch_python), SMALL)
    for row in results["rows"]:
        assert row["difference"] <= 1e-5
        assert row["ratio"] == pytest.approx(row["pairs_per_second"] / row["torch_pairs_per_second"])
        assert row["best_ratio"] == pytest.approx(row["pairs_per_second"] / row["torch_best_pairs_per_second"])
        assert row["best_ratio"] <= row["ratio"]
    assert "PyTorch pairs/s" in capsys.readouterr().out


def test_first_call_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(scoring_speed, "first_call_seconds", lambda q, t, images: (q + t + images) / 10)
    results = scoring_speed.measure(ScoreFlags(**{**SCORE, "skip_first_call": False}, torch_python="none"), SMALL)
    assert results["first_call_seconds"] == 2.8
    assert "(12×7, 9 images) 2.8 s after its start" in capsys.readouterr().out


def test_first_call_scores_a_shortlist(monkeypatch):
    """The program that a fresh process runs, here in this one."""
    variables = {}
    monkeypatch.setattr(sys, "argv", ["-c", "3", "2", "4"])
    exec(scoring_speed.FIRST_CALL, variables)
    assert variables["query"].features.shape == (3, 768)
    assert variables["database"].features.shape == (4, 2, 768)


def test_logits_of_random_pairs_differ_more_than_the_tolerance():
    random = np.random.default_rng(0)
    model, _ = harness.random_model(SMALL)
    query, database = (DescriptorSet(random.standard_normal(s, np.float32)) for s in ((12, 24), (9, 7, 24)))
    assert score_shortlist(model, query, database).std() > 100 * scoring_speed.TOLERANCE["float32"]


def test_train_alone(capsys):
    results = training_speed.measure_steps(TrainFlags(**TRAIN, teacher="off", torch_python="none"), STUDENT, TEACHER)
    [row] = results["rows"]
    assert row["teacher"] == "no"
    work = 2 * flops.train_pair(STUDENT, 10, 6, None, 12)
    assert row["gflop_per_triplet"] == pytest.approx(work / 1e9)
    assert row["triplets_per_second"] == pytest.approx(8 / row["seconds"])
    assert "seconds per step" in capsys.readouterr().out


def test_train_beside_torch(torch_here):
    flags = TrainFlags(**TRAIN, teacher="on", torch_python=torch_here)
    [row] = training_speed.measure_steps(flags, STUDENT, TEACHER)["rows"]
    assert row["teacher"] == "yes"
    assert row["difference"] <= 1e-3
    assert row["ratio"] > 0
    assert row["gflop_per_triplet"] == pytest.approx(2 * flops.train_pair(STUDENT, 10, 6, TEACHER, 12) / 1e9)


def test_evaluate_alone(tmp_path):
    [row] = evaluation_speed.measure(EvaluateFlags(**EVALUATE, folder=tmp_path, torch_python="none"), SMALL)["rows"]
    # Medium leaves out 10 junk images and Hard 20, and each takes the next; the union is scored once.
    assert 3 * 30 <= row["pairs"] <= 3 * 50
    assert row["seconds"] > 0


def test_evaluate_beside_torch(torch_here, tmp_path, capsys):
    flags = EvaluateFlags(**EVALUATE, torch_queries=2, torch_python=torch_here, folder=tmp_path)
    [row] = evaluation_speed.measure(flags, SMALL)["rows"]
    assert row["difference"] <= 1e-5
    assert row["ratio"] == pytest.approx(row["torch_seconds"] / row["seconds"])
    assert "for 2 queries, scaled up" in capsys.readouterr().out


def test_evaluate_away_from_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = EvaluateFlags(**EVALUATE, folder=tmp_path / "set", torch_python="none")
    assert evaluation_speed.measure(flags, TEACHER)["rows"][0]["pairs"] >= 90


def test_random_set_is_made_once(tmp_path):
    flags = EvaluateFlags(queries=2, gallery=60, rerank=30, stored=4)
    manifest = evaluation_speed.make_set(tmp_path, flags, width=8)
    written = (tmp_path / "gallery.hdf5").stat().st_mtime_ns
    assert evaluation_speed.make_set(tmp_path, flags, width=8) == manifest
    assert (tmp_path / "gallery.hdf5").stat().st_mtime_ns == written
    ranks = np.load(tmp_path / "neighbours" / "indices.npy")
    for row, truth in zip(ranks, json.loads((tmp_path / "ground_truth.json").read_text())):
        judged = truth["easy"] + truth["hard"] + truth["junk"]
        assert len(set(judged)) == 30
        assert set(judged) <= set(row[:30].tolist())


def test_data_command_prints_and_writes(tmp_path, capsys):
    written = tmp_path / "data.json"
    flags = ["--images=50", "--descriptors=4", "--width=8", "--triplets=4", "--batches=1", "--step=0", "--workers=0"]
    assert benchmark.main(["data", *flags, "--torch-python=none", f"--json={written}"]) == 0
    assert "ArrayRecord float16" in capsys.readouterr().out
    assert len(json.loads(written.read_text())["rows"]) == 3


def test_all_storages_hold_the_same_images(tmp_path):
    import h5py

    training_speed.make_files(tmp_path, DataFlags(**DATA))
    with h5py.File(tmp_path / "local.hdf5") as file:
        expected = file["features"][17, :, 5:]
    np.testing.assert_array_equal(open_split(tmp_path / "float16", "train")[17].descriptors.features, expected)
    # half a step of int8, of values below 5
    np.testing.assert_allclose(open_split(tmp_path / "int8", "train")[17].descriptors.features, expected, atol=0.025)


def test_every_reader_has_a_row(torch_python):
    rows = training_speed.measure_reading(DataFlags(**DATA, torch_python=torch_python))["rows"]
    names = ["ArrayRecord float16", "ArrayRecord int8", "HDF5 float16", "PyTorch DataLoader"]
    assert [row["reader"].split(",")[0] for row in rows] == names
    for row in rows:
        assert row["megabytes_per_second"] == pytest.approx(row["images_per_second"] * 4 * 8 * 2 / 1e6)
        assert row["ratio"] == pytest.approx(row["images_per_second"] / rows[-1]["images_per_second"])
        assert 0 <= row["waiting"] <= 1


def test_a_python_without_torch_is_left_out_with_the_reason(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    python.chmod(0o755)
    process = TorchProcess(str(python))
    assert not process.there
    assert process.why == "ModuleNotFoundError: No module named 'torch'"


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [(np.ones(2), np.array([1.0, 1.0 + 5e-6]), 5e-6), (2.0, np.array(2.00001), 5e-6)],
)
def test_results_are_compared(monkeypatch, ours, theirs, difference):
    row = compared(monkeypatch, ours, theirs)
    assert row["difference"] == pytest.approx(difference, rel=1e-3)
    assert row["ratio"] == pytest.approx(3 / 4 * 2 / row["seconds"])  # PyTorch took 3 s for 4 things, and ours did 2


@pytest.mark.parametrize("theirs", [np.array([1.0, 1.1]), np.array([1.0, math.nan])])
def test_a_difference_stops_the_comparison(monkeypatch, theirs):
    with pytest.raises(UserError, match="answer: ours and PyTorch's differ by"):
        compared(monkeypatch, np.ones(2), theirs)


def compared(monkeypatch, ours, theirs):
    """The row of a case whose two sides give these answers."""
    answer = {"answer": theirs, "seconds": 3.0, "units": 4, "peak_bytes": 1}
    bench = Harness(Flags(torch_python="none"), "things")
    monkeypatch.setattr(bench.torch, "there", True)
    monkeypatch.setattr(bench.torch, "run", lambda *job: answer)
    case = Case(row={}, ours=lambda: {"answer": ours}, units=2, job=("job", {}, {}), tolerance={"float32": 1e-5})
    return bench.row(case)


@pytest.mark.parametrize(
    ("measure", "flags", "message"),
    [
        (scoring_speed.measure, ScoreFlags(torch_python="/no/such"), "--torch-python=/no/such: no such program"),
        (scoring_speed.measure, ScoreFlags(devices=3), "--devices=3: JAX is already in use with 8 devices"),
        (training_speed.measure_steps, TrainFlags(shapes=((500, 5),)), "--shapes asks for 500 descriptors"),
        (training_speed.measure_steps, TrainFlags(triplets=9, torch_python="none"), "not divisible by 8 devices"),
        (training_speed.measure_reading, DataFlags(images=3), "--images=3: give at least 50"),
        (extraction_speed.measure, ExtractFlags(side=(500,)), "--side=500: the network takes multiples of 14"),
        (
            evaluation_speed.measure,
            EvaluateFlags(gallery=100),
            "--gallery=100: re-ranking 400 needs at least 420 images",
        ),
        (
            evaluation_speed.measure,
            EvaluateFlags(rerank=20, gallery=60),
            "--rerank=20: the ground truth needs at least 30",
        ),
        (evaluation_speed.measure, EvaluateFlags(stored=100), "--stored=100"),
    ],
)
def test_user_errors(measure, flags, message):
    with pytest.raises(UserError, match=message):
        measure(flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        *((f"--shapes={text}", "expected QxT") for text in ("600", "6x", "0x5", "1x2x3")),
        ("--shortlist=1,b", "--shortlist"),
        ("--shortlist=0", "--shortlist"),
        ("--repeats=0", "--repeats"),
        ("--devices=0", "--devices"),
        ("--dtype=int8", "--dtype"),
    ],
)
def test_wrong_flags_are_named(flag, message):
    with pytest.raises(UserError, match=message):
        benchmark.main(["score", flag])


def test_flags_reach_the_benchmark(monkeypatch):
    seen = []
    monkeypatch.setattr(scoring_speed, "measure", seen.append)
    benchmark.main(["score", "--shapes=600x50,10x10", "--shortlist=100,400", "--torch-python=none", "--torch-compile"])
    benchmark.main(["score"])
    expected = {"shapes": ((600, 50), (10, 10)), "shortlist": [100, 400], "torch_compile": True}
    assert seen == [ScoreFlags(**expected, torch_python="none"), ScoreFlags()]


def test_table():
    rows = [{"a": "x", "b": 1234.5, "c": None}, {"a": "y", "b": math.nan, "c": None}]
    lines = markdown(rows, {"a": "A", "b": "B", "c": "C"}).splitlines()
    assert lines == ["| A |     B |", "|---|------:|", "| x | 1,234 |", "| y |     – |"]


def test_matmul_peak_is_a_rate():
    assert 1e6 < matmul_peak("float32", size=64, repeats=2) < 1e16


def test_extract_alone(capsys):
    network = ViTConfig(width=64, depth=1, heads=2, mlp=48)
    sift, vit = extraction_speed.measure(ExtractFlags(**EXTRACT, torch_python="none"), network)["rows"]
    assert sift["descriptors"] == 600
    assert min(sift["images_per_second"], vit["images_per_second"]) > 0
    assert "PyTorch images/s" not in capsys.readouterr().out


def test_extract_beside_torch(torch_here):
    network = ViTConfig(width=64, depth=2, heads=2, mlp=48)
    _, vit = extraction_speed.measure(ExtractFlags(**EXTRACT, torch_python=torch_here), network)["rows"]
    assert vit["difference"] <= 1e-4
    assert vit["ratio"] == pytest.approx(vit["images_per_second"] / vit["torch_images_per_second"])
