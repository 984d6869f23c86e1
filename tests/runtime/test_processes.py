"""Many processes: two that are one program over loopback, and hosts that are missing."""

import json
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_run
import synthetic
from distributed_job import STEPS
from processes import begin, environment

import ames_jax
from ames_jax.model.weights import read_model, weights_of
from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.runtime.command_line import is_among, load_config
from ames_jax.runtime.devices import data_mesh
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.processes import facts_of, start
from ames_jax.training import model_task
from ames_jax.training.checkpoints import RunCheckpoints


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def together(data, tmp_path_factory):
    """Where two processes of two devices each have worked, and what each printed."""
    directory, port = tmp_path_factory.mktemp("together"), free_port()
    processes = [begin("distributed_job.py", data, directory, port, i, devices=2) for i in range(2)]
    printed = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    return directory, printed


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(model_task, "data_mesh", lambda: data_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The best model of one process with one device, after the steps of `distributed_job`."""
    directory = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_task, "data_mesh", lambda: data_mesh(jax.devices()[:1]))
        small_run.train(data, directory, STEPS, validate_every=1000, checkpoint_every=1000)
    return read_model(directory / "last")


def distance(found, expected):
    """Of all parameters together, relative to their size. Key biases, whose gradient is zero, are left out: Adam makes
    steps of the rounding noise in them, which have no effect on any score."""
    apart, size = 0.0, 0.0
    found, expected = weights_of(found), weights_of(expected)
    for name, values in expected.items():
        difference = (found[name] - values).astype(np.float64)
        if name.endswith("qkv/bias"):
            difference = np.delete(difference, slice(len(values) // 3, 2 * len(values) // 3))
        apart, size = apart + np.sum(difference**2), size + np.sum(np.square(values, dtype=np.float64))
    return np.sqrt(apart / size)


def test_two_processes_train_as_one(together, alone):
    directory, printed = together
    assert "process 1 of 2 on" in printed[1]
    assert "2 cpu device(s) here, 4 in all (mesh data=4)" in printed[1]
    assert "all 2 processes agree on the teacher's parameters" in printed[0]
    assert distance(read_model(directory / "whole" / "last"), alone) < 1e-6


@pytest.mark.usefixtures("one_device")
def test_one_process_goes_on_where_two_were_stopped(together, alone, data):
    directory, printed = together
    stopped = [re.search(r"teacher saved at step (\d+)", text) for text in printed]
    assert all(stopped), printed
    step = int(stopped[0][1])
    assert int(stopped[1][1]) == step < STEPS
    checkpoints = RunCheckpoints(directory / "stopped" / "checkpoints", writes=False)
    assert checkpoints.latest() == step
    small_run.train(data, directory / "stopped", STEPS, validate_every=1000)
    assert distance(read_model(directory / "stopped" / "last"), alone) < 1e-6


def test_two_processes_evaluate_as_one(together, data, tmp_path):
    directory, printed = together
    rows = [json.loads(re.search("RESULT (.*)", text)[1]) for text in printed]
    assert rows[0] == rows[1]
    config = load_config("evaluate")
    config.update(data_dir=str(data), dataset="test", model=str(directory / "whole" / "last"))
    config.update(query_descriptors=8, database_descriptors=4, rerank="5", lam="0.5", gamma="1")
    assert evaluate(config, tmp_path)["rows"] == rows[0]
    one, other = (np.load(where / "logits.npz")["logits"] for where in (tmp_path, directory / "evaluation"))
    np.testing.assert_allclose(one, other, atol=2e-6)
    # What two have scored, one takes as it is.
    assert evaluate(config, directory / "evaluation")["rows"] == rows[0]


def test_processes_that_differ_are_named(together):
    for text in together[1]:
        assert re.search(r"--config.data.batch is 9 in process 1 \(.*\), 8 in process 0", text)


def test_settings_may_differ_by_their_exact_names_alone():
    config = load_config("evaluate")
    config.update(process=1, processes=2, data_dir="/here", distributed="a:1")
    facts = facts_of(config)
    assert facts["--config.processes"] == "2"
    assert not {"--config.process", "--config.data_dir", "--config.distributed"} & facts.keys()


def test_a_section_frees_its_keys_and_no_others():
    names = ("teacher", "checkpoint")
    free = [key for key in ("teacher", "teacher_size", "checkpoint.every", "checkpoints") if is_among(key, names)]
    assert free == ["teacher", "checkpoint.every"]


def test_processes_compare_the_sources_of_every_room(monkeypatch, tmp_path):
    config = load_config("evaluate")
    monkeypatch.setattr(ames_jax, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "layer.py").write_text("old")
    before = facts_of(config)["ames_jax sources"]
    (tmp_path / "model" / "layer.py").write_text("new")
    assert facts_of(config)["ames_jax sources"] != before


MISSING = """
import sys
from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.processes import start
config = load_config("evaluate")
config.update(distributed=sys.argv[1], process=0, processes=2, start_timeout=2.0)
start(config)
"""


def test_a_missing_host_is_an_error_after_the_stated_time():
    address = f"127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "-c", MISSING, address],
        env=environment(1), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"process 0 of 2 at {address} waited 2 s" in done.stderr
    assert "--worker=all" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "settings", [{"distributed": "here"}, {"distributed": "a:1"}, {"distributed": "a:1", "process": 2, "processes": 2}]
)
def test_an_incomplete_address_is_refused(settings):
    config = load_config("evaluate")
    config.update(settings)
    with pytest.raises(UserError, match="expected auto, off, or HOST:PORT"):
        start(config)
