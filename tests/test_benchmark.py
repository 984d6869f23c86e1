"""`python -m ames_jax.benchmark`: every subcommand on tiny shapes, with and without PyTorch."""

import argparse
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from ames_jax import benchmark
from ames_jax.benchmarks import (
    data,
    extract,
    flops,
    machine,
    options,
    score,
    synthetic_retrieval,
    train,
    whole_job,
)
from ames_jax.benchmarks.opponent import Opponent, compare
from ames_jax.extraction.vit import ViTConfig
from ames_jax.model.ames import AMESConfig
from ames_jax.report import plain_tables
from ames_jax.runtime.errors import UserError

SMALL = AMESConfig(descriptor_width=24, model_width=32, heads=2, layers=2, feed_forward=48)
# One layer compiles faster; the parity of deeper models has its own tests.
TEACHER = AMESConfig(descriptor_width=24, model_width=32, heads=2, layers=1, feed_forward=48)
STUDENT = AMESConfig(descriptor_width=24, bits=16, model_width=32, heads=2, layers=1, feed_forward=48)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No large matrix product; no cache in the home folder."""
    for module in (score, train):
        monkeypatch.setattr(module, "matmul_peak", lambda dtype: 1e11)
    monkeypatch.setattr(benchmark.cache, "start", lambda: None)


@pytest.fixture(scope="module")
def torch_python():
    found = subprocess.run([sys.executable, "-c", "import torch, h5py"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("this Python has no torch")
    return sys.executable


def arguments(module, *flags):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(flags)


SCORE = ("--shapes=12x7", "--shortlist=9,16", "--queries=2", "--repeats=1", "--skip-first-call")
TRAIN = ("--shapes=10x6", "--triplets=8", "--descriptors=12", "--repeats=1")
EVALUATE = ("--shapes=8x5", "--queries=3", "--gallery=60", "--rerank=30", "--stored=10")


def test_score_alone():
    results, text = score.run(arguments(score, *SCORE, "--torch-python=none"), SMALL)
    assert [(r["shape"], r["shortlist"]) for r in results["rows"]] == [("12×7", 9), ("12×7", 16)]
    row = results["rows"][1]
    work = flops.shortlist(SMALL, 12, 7, 16)
    assert row["gflop_per_pair"] == pytest.approx(work / 16 / 1e9)
    assert row["gflops"] == pytest.approx(row["pairs_per_second"] * work / 16 / 1e9)
    assert row["share"] == pytest.approx(row["gflops"] * 1e9 / (1e11 * 8))
    assert row["peak_mb"] > 0
    assert "pairs/s" in text
    assert "PyTorch pairs/s" not in text
    assert "left out" in text


def test_score_beside_torch(torch_python):
    flags = (*SCORE, "--torch-pairs=5", f"--torch-python={torch_python}")
    results, text = score.run(arguments(score, *flags), SMALL)
    for row in results["rows"]:
        assert row["difference"] <= 1e-5
        assert row["ratio"] == pytest.approx(row["pairs_per_second"] / row["torch_pairs_per_second"])
        assert row["torch_batch"] == 5
        assert row["best_ratio"] == pytest.approx(row["pairs_per_second"] / row["torch_best_pairs_per_second"])
        assert row["best_ratio"] <= row["ratio"]
    assert "PyTorch pairs/s" in text


def test_first_call_is_printed(monkeypatch):
    monkeypatch.setattr(score.first_call, "seconds", lambda q, t, images: (q + t + images) / 10)
    flags = [flag for flag in SCORE if flag != "--skip-first-call"]
    results, text = score.run(arguments(score, *flags, "--torch-python=none"), SMALL)
    assert results["first_call_seconds"] == 2.8
    assert "programs cached: 2.8 s" in text


def test_logits_of_random_pairs_differ_more_than_the_tolerance():
    from ames_jax.descriptors import DescriptorSet
    from ames_jax.retrieval.scoring import score_shortlist

    random = np.random.default_rng(0)
    model, _ = machine.random_model(SMALL)
    query, database = (DescriptorSet(random.standard_normal(s, np.float32)) for s in ((12, 24), (9, 7, 24)))
    assert score_shortlist(model, query, database).std() > 100 * score.TOLERANCE["float32"]


def test_train_alone():
    results, text = train.run(arguments(train, *TRAIN, "--teacher=on", "--torch-python=none"), STUDENT, TEACHER)
    [row] = results["rows"]
    assert row["teacher"] == "yes"
    work = 2 * 8 * flops.train_pair(STUDENT, 10, 6, TEACHER, 12)
    assert row["gflop_per_step"] == pytest.approx(work / 1e9)
    assert row["triplets_per_second"] == pytest.approx(8 / row["seconds"])
    assert "s a step" in text


def test_train_beside_torch(torch_python):
    results, _ = train.run(arguments(train, *TRAIN, f"--torch-python={torch_python}"), STUDENT, TEACHER)
    assert [row["teacher"] for row in results["rows"]] == ["no", "yes"]
    for row in results["rows"]:
        assert max(row["difference"], row["gradient_norm_difference"]) <= 1e-3
        assert row["ratio"] > 0


def test_evaluate_alone(tmp_path):
    flags = (*EVALUATE, f"--folder={tmp_path}", "--torch-python=none")
    row = whole_job.run(arguments(whole_job, *flags), SMALL)[0]["rows"][0]
    # Medium leaves out 10 junk images and Hard 20, and each takes the next; the union is scored once.
    assert 3 * 30 <= row["pairs"] <= 3 * 50
    assert row["pairs_per_second"] == pytest.approx(row["pairs"] / row["seconds"])


def test_evaluate_beside_torch(torch_python, tmp_path):
    flags = (*EVALUATE, "--torch-queries=2", f"--torch-python={torch_python}", f"--folder={tmp_path}")
    results, text = whole_job.run(arguments(whole_job, *flags), SMALL)
    row = results["rows"][0]
    assert row["difference"] <= 1e-5
    assert row["torch_pairs"] == 2 * 3 * 30
    assert row["ratio"] == pytest.approx(row["torch_seconds"] / row["seconds"])
    assert "on 2 of 3 queries, scaled up" in text


def test_synthetic_set_is_made_once(tmp_path):
    size = synthetic_retrieval.Size(queries=2, gallery=60, listed=30, descriptors=4, width=8)
    manifest = synthetic_retrieval.make(tmp_path, size)
    written = (tmp_path / "gallery.hdf5").stat().st_mtime_ns
    assert synthetic_retrieval.make(tmp_path, size) == manifest
    assert (tmp_path / "gallery.hdf5").stat().st_mtime_ns == written
    ranks = np.load(tmp_path / "neighbours" / "indices.npy")
    for row, truth in zip(ranks, json.loads((tmp_path / "ground_truth.json").read_text())):
        judged = truth["easy"] + truth["hard"] + truth["junk"]
        assert len(set(judged)) == 30
        assert set(judged) <= set(row[:30].tolist())


def test_data_command_prints_and_writes(tmp_path, capsys):
    written = tmp_path / "data.json"
    flags = ["--images=50", "--descriptors=4", "--width=8", "--triplets=4", "--batches=1", "--step=0"]
    assert benchmark.main(["data", *flags, "--torch-python=none", f"--json={written}"]) == 0
    assert "ArrayRecord float16" in capsys.readouterr().out
    assert [row["ratio"] for row in json.loads(written.read_text())["rows"]] == [None] * 3


def test_a_python_without_torch_is_left_out_with_the_reason(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    python.chmod(0o755)
    opponent = Opponent(str(python))
    assert not opponent.there
    assert opponent.why == "ModuleNotFoundError: No module named 'torch'"


def test_a_difference_stops_the_comparison():
    assert compare("logits", np.ones(2), np.array([1.0, 1.0 + 5e-6]), 1e-5) == pytest.approx(5e-6)
    for wrong in (1.1, math.nan):
        with pytest.raises(UserError, match="logits: ours and PyTorch's differ by"):
            compare("logits", np.ones(2), np.array([1.0, wrong]), 1e-5)


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (score, ("--repeats=0",), "--repeats must be at least 1"),
        (score, ("--shortlist=0",), "--shortlist must be at least 1"),
        (score, ("--torch-python=/no/such",), "--torch-python=/no/such: no such program"),
        (score, ("--devices=0",), "--devices=0: use at least 1"),
        (score, ("--devices=3",), "--devices=3: JAX is already in use with 8 devices"),
        (train, ("--shapes=500x5",), "--shapes asks for 500 descriptors"),
        (train, ("--triplets=9", "--torch-python=none"), "not divisible by 8 devices"),
        (data, ("--images=3",), "--images must be at least 50"),
        (extract, ("--side=500",), "--side=500: the network takes multiples of 14"),
        (whole_job, ("--gallery=100",), "--gallery=100: re-ranking 400 needs at least 420 images"),
        (whole_job, ("--rerank=20", "--gallery=60"), "--rerank=20: the ground truth needs at least 30"),
        (whole_job, ("--stored=100",), "--stored=100"),
    ],
)
def test_user_errors(module, flags, message):
    with pytest.raises(UserError, match=message):
        module.run(arguments(module, *flags))


def test_shapes_and_numbers():
    assert options.shapes_of("600x50,10x10") == [(600, 50), (10, 10)]
    for text in ("600", "6x", "0x5", "1x2x3"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected QxT"):
            options.shapes_of(text)
    with pytest.raises(argparse.ArgumentTypeError, match="expected whole numbers"):
        options.whole_numbers("1,b")


def test_table_and_json(tmp_path):
    rows = [{"a": "x", "b": 1234.5, "c": None}, {"a": "y", "b": math.nan, "c": None}]
    lines = plain_tables.markdown(rows, {"a": "A", "b": "B", "c": "C"}).splitlines()
    assert lines == ["| A |     B |", "|---|------:|", "| x | 1,234 |", "| y |     – |"]
    plain_tables.write_json(tmp_path / "x.json", {"rows": rows})
    assert json.loads((tmp_path / "x.json").read_text())["rows"][1] == {"a": "y", "b": None, "c": None}
    with pytest.raises(UserError, match=r"--json=.* cannot be written"):
        plain_tables.write_json(tmp_path / "none" / "x.json", {})


def test_matmul_peak_is_a_rate():
    assert 1e6 < machine.matmul_peak("float32", size=64, repeats=2) < 1e16


EXTRACT = ("--pictures=3", "--side=28", "--repeats=1")


def test_extract_alone():
    network = ViTConfig(width=64, depth=1, heads=2, mlp=48)
    results, text = extract.run(arguments(extract, *EXTRACT, "--torch-python=none"), network)
    sift, vit = results["rows"]
    assert sift["descriptors"] == 600
    assert min(sift["images_per_second"], vit["images_per_second"]) > 0
    assert "PyTorch images/s" not in text


def test_extract_beside_torch(torch_python):
    network = ViTConfig(width=64, depth=2, heads=2, mlp=48)
    results, _ = extract.run(arguments(extract, *EXTRACT, f"--torch-python={torch_python}"), network)
    vit = results["rows"][1]
    assert vit["difference"] <= 1e-4
    assert vit["ratio"] == pytest.approx(vit["images_per_second"] / vit["torch_images_per_second"])
