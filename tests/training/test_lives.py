"""Runs that are cut short, and runs that live in a bucket."""

import zipfile

import jax
import numpy as np
import pytest
import small_run
import synthetic
from conftest import GOLDEN
from event_files import shown_steps
from processes import begin

from ames_jax.model.weights import read_model, weights_of
from ames_jax.runtime.devices import data_mesh
from ames_jax.training import model_task
from ames_jax.training.log import read_history

KILLS, KILLED_STEPS = 20, 130


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(model_task, "data_mesh", lambda: data_mesh(jax.devices()[:1]))


def test_killed_twenty_times_it_ends_the_same(data, tmp_path):
    job = begin("kill_job.py", data, tmp_path, KILLED_STEPS, KILLS)
    printed, _ = job.communicate(timeout=900)
    assert job.returncode == 0, printed
    one, other = (weights_of(read_model(tmp_path / name / "last")) for name in ("killed", "unbroken"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    # As often as it was killed, it went on from a checkpoint: the log has every step once.
    steps = [line["step"] for line in read_history(tmp_path / "killed") if "loss" in line]
    assert steps == shown_steps(tmp_path / "killed", "loss") == list(range(1, KILLED_STEPS + 1))


@pytest.mark.usefixtures("one_device")
def test_a_run_of_version_0_1_goes_on(data, tmp_path):
    """Its checkpoint of step 2, best model and log; what it came to after step 4 lies beside them in `end`."""
    with zipfile.ZipFile(GOLDEN / "training_run.zip") as file:
        file.extractall(tmp_path)
    small_run.train(data, tmp_path, 4, validate_every=4, checkpoint_every=2)
    found, expected = (weights_of(read_model(tmp_path / name)) for name in ("last", "end"))
    # Other processors round differently, and Adam makes whole steps of the rounding noise in key biases (no gradient).
    for name in found.keys() - {name for name in found if name.endswith("qkv/bias")}:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)
    assert [line["step"] for line in read_history(tmp_path) if "loss" in line] == [1, 2, 3, 4]


def test_a_run_lives_in_a_bucket(data):
    """Checkpoints, logs and models in a fake object store; stopped, resumed and loaded from there."""
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    job = begin("bucket_job.py", data)
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    assert "teacher saved at step 3" in printed
    assert "checkpoints ['2', '3']" in printed
    assert "all there" in printed
