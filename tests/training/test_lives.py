"""Runs that are cut short, and runs that live in a bucket."""

import jax
import numpy as np
import pytest
import synthetic
from processes import begin

from ames_jax.model.weights import read_model, weights_of
from ames_jax.training.log import read_history

KILLS, KILLED_STEPS = 20, 130


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("data"))


def test_killed_twenty_times_it_ends_the_same(data, tmp_path):
    job = begin("kill_job.py", data, tmp_path, KILLED_STEPS, KILLS)
    printed, _ = job.communicate(timeout=900)
    assert job.returncode == 0, printed
    one, other = (weights_of(read_model(tmp_path / name / "last")) for name in ("killed", "unbroken"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    # As often as it was killed, it went on from a checkpoint: the log has every step once.
    steps = [line["step"] for line in read_history(tmp_path / "killed") if "loss" in line]
    assert steps == list(range(1, KILLED_STEPS + 1))


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
