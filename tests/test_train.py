"""The command line of training, as a user gives it: end to end, killed and resumed, and every mistake."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import synthetic
from safetensors.numpy import load_file

from ames_jax import train
from ames_jax.runtime.errors import run_main

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "student_bin.py"
SMALL = [
    "--config.model.model_width=16", "--config.model.bits=16", "--config.optimizer.steps=6", "--config.optimizer.warmup=0",
    "--config.data.descriptors=8", "--config.data.lengths=3,9", "--config.data.buckets=(8,)", "--config.data.batch=8",
    "--config.data.top=30", "--config.log_every=1", "--config.validation.queries=8", "--config.validation.shortlist=10",
    "--config.validation.every=6", "--config.checkpoint.every=2",
    "--config.train_teacher.model.model_width=16", "--config.train_teacher.optimizer.steps=6",
    "--config.train_teacher.data.descriptors=8", "--config.train_teacher.data.lengths=3,9",
    "--config.train_teacher.data.buckets=(8,)", "--config.train_teacher.data.batch=8", "--config.train_teacher.data.top=30",
    "--config.train_teacher.validation.queries=8", "--config.train_teacher.validation.shortlist=10",
    "--config.train_teacher.log_every=1", "--config.train_teacher.validation.every=6",
    "--config.train_teacher.checkpoint.every=2", "--config.report.shortlist=10",
    "--config.report.query_descriptors=4,8", "--config.report.database_descriptors=4,8",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("data"))


def flags(data, workdir, *more):
    return [f"--config={CONFIG}", f"--config.data_dir={data}", f"--workdir={workdir}", *SMALL, *more]


def begin(flags):
    """Starts a training as a user does."""
    command = [sys.executable, "-m", "ames_jax.train", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def trained(flags):
    """What a training prints that goes to its end."""
    process = begin(flags)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, trained(flags(data, workdir))


def test_a_run_leaves_table_pictures_and_models(unbroken):
    workdir, printed = unbroken
    assert "training or reusing one" in printed
    results = json.loads((workdir / "results.json").read_text())
    assert results["dataset"] == "synthetic"
    methods = {row["method"] for row in results["rows"]}
    assert methods == {"global only", "teacher", "student", "hand-made, floats", "hand-made, bits"}
    student = [row for row in results["rows"] if row["method"] == "student" and row["query_descriptors"] == 8]
    assert [row["bytes_per_image"] for row in student] == [8, 16]
    assert all(0 <= row["mean"] <= 100 for row in results["rows"])
    table = (workdir / "results.md").read_text()
    assert table in printed
    assert "synthetic" in table
    assert (workdir / "tradeoff.png").stat().st_size > 5000
    assert (workdir / "training.png").stat().st_size > 5000
    assert "no pictures" in printed
    for role in ("teacher", "student"):
        assert (workdir / role / "best" / "model.safetensors").exists()


def same_models(one, other):
    for role in ("teacher", "student"):
        a, b = (load_file(w / role / "last" / "model.safetensors") for w in (one, other))
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def kill_at(flags, checkpoints, number):
    """Starts a run and sends it a signal as soon as there is a checkpoint."""
    process = begin(flags)
    limit = time.monotonic() + 300
    while not list(checkpoints.glob("[1-9]*")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=25)  # what a machine that is taken away leaves between SIGTERM and the end
    return process.returncode


def test_killed_and_resumed_ends_bit_identical(unbroken, data, tmp_path):
    given = flags(data, tmp_path, "--config.report.enabled=false")
    assert kill_at(given, tmp_path / "teacher" / "checkpoints", signal.SIGKILL) == -signal.SIGKILL
    # Outside the steps SIGTERM ends the process at once; in them it is saved and exits with 75.
    assert kill_at(given, tmp_path / "student" / "checkpoints", signal.SIGTERM) in (75, -signal.SIGTERM)
    assert "teacher: finished before" in trained(given)
    same_models(unbroken[0], tmp_path)


def test_mistakes_are_one_line_and_exit_code_2(unbroken, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.cache, "start", lambda: None)
    readonly = tmp_path / "file"
    readonly.write_text("not a folder")
    cases = [
        (flags(data, unbroken[0], "--config.seed=1"), "begun with other settings: seed was 0, is 1"),
        (flags(data, readonly / "run"), "cannot be written"),
        (flags(tmp_path / "nowhere", tmp_path / "a"), "nowhere"),
        (flags(data, tmp_path / "b", f"--config.teacher={tmp_path}"), "holds no model"),
        (
            flags(data, tmp_path / "c", f"--config.teacher={unbroken[0] / 'teacher'}", "--config.size=released"),
            "of one size",
        ),
        ([f"--config={CONFIG}:gldv2", f"--workdir={tmp_path / 'd'}"], "ames_jax.prepare"),
    ]
    for given, message in cases:
        with pytest.raises(SystemExit) as ended:
            run_main(lambda given=given: train.main([*given, "--config.distributed=off"]))
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error:")]
        assert ended.value.code == 2, error
        assert len(lines) == 1, error
        assert message in lines[0]
