"""The command line of training, as a user gives it: end to end, killed and resumed, and every mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import synthetic
from flax import nnx
from safetensors.numpy import load_file

from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import save_model
from ames_jax.runtime.errors import run_main
from ames_jax.train import main

ROOT = Path(__file__).parents[1]
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


def environment(home):
    return {
        **os.environ,
        "AMES_JAX_HOME": str(home),
        "XLA_FLAGS": os.environ["ONE_DEVICE_XLA_FLAGS"],
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "default",
    }


def command(data, workdir, *more):
    config = f"--config={ROOT / 'configs' / 'student_bin.py'}"
    return [
        sys.executable, "-m", "ames_jax.train", config, f"--config.data_dir={data}", f"--workdir={workdir}", *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def home():
    return Path(jax.config.jax_compilation_cache_dir)


def run(arguments, home, **options):
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def unbroken(data, home, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    done = run(command(data, workdir), home)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


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


def kill_at(arguments, home, checkpoints, number):
    """Starts a run and sends it a signal as soon as there is a checkpoint."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    limit = time.monotonic() + 300
    while not list(checkpoints.glob("[1-9]*")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=25)  # what a machine that is taken away leaves between SIGTERM and the end
    return process.returncode


def test_killed_and_resumed_ends_bit_identical(unbroken, data, home, tmp_path):
    arguments = command(data, tmp_path, "--config.report.enabled=false")
    assert kill_at(arguments, home, tmp_path / "teacher" / "checkpoints", signal.SIGKILL) == -signal.SIGKILL
    # Outside the steps SIGTERM ends the process at once; in them it is saved and exits with 75.
    assert kill_at(arguments, home, tmp_path / "student" / "checkpoints", signal.SIGTERM) in (75, -signal.SIGTERM)
    done = run(arguments, home)
    assert done.returncode == 0, done.stderr
    assert "teacher: finished before" in done.stdout
    same_models(unbroken[0], tmp_path)


def test_mistakes_are_one_line_and_exit_code_2(unbroken, data, home, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AMES_JAX_HOME", str(home))
    narrow = AMES(AMESConfig(descriptor_width=20, model_width=16, layers=2, feed_forward=256), nnx.Rngs(0))
    save_model(narrow, tmp_path / "narrow")
    readonly = tmp_path / "file"
    readonly.write_text("not a folder")
    cases = [
        (command(data, unbroken[0], "--config.seed=1"), "begun with other settings: seed was 0, is 1"),
        (command(data, readonly / "run"), "cannot be written"),
        (command(tmp_path / "nowhere", tmp_path / "a"), "nowhere"),
        (command(data, tmp_path / "b", f"--config.teacher={tmp_path}"), "holds no model"),
        (
            command(data, tmp_path / "c", f"--config.teacher={unbroken[0] / 'teacher'}", "--config.size=released"),
            "of one size",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as ended:
            run_main(lambda arguments=arguments: main([*arguments[3:], "--config.distributed=off"]))
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error:")]
        assert ended.value.code == 2, error
        assert len(lines) == 1, error
        assert message in lines[0]


def test_gldv2_without_data_says_how_to_get_it(home, tmp_path):
    config = f"--config={ROOT / 'configs' / 'student_bin.py'}:gldv2"
    done = run([sys.executable, "-m", "ames_jax.train", config, f"--workdir={tmp_path}"], home)
    assert done.returncode == 2
    assert "ames_jax.prepare" in done.stderr
    assert "Traceback" not in done.stderr
