import dataclasses
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from event_files import shown_steps
from flax import nnx

from ames_jax.convert import main as convert
from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import open_split
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.released import load_model
from ames_jax.model.weights import facts_of, find_model, read_model, save_model
from ames_jax.runtime import files
from ames_jax.runtime.cache import home
from ames_jax.runtime.devices import data_mesh, on_all
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock
from ames_jax.runtime.preemption import StoppedEarly
from ames_jax.training import model_task
from ames_jax.training.checkpoints import RunCheckpoints
from ames_jax.training.log import TrainingLog, read_history, trace_steps
from ames_jax.training.loop import FitSettings, train
from ames_jax.training.model_task import ModelTask, finished, fit
from ames_jax.training.pipeline import TripletPipeline
from ames_jax.training.step import Recipe, TrainState
from ames_jax.training.triplets import Triplets

STEPS = 8
CONFIG = AMESConfig(descriptor_width=synthetic.WIDTH, model_width=16, layers=1, feed_forward=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def pipeline(data):
    source = open_split(data, "train")
    triplets = Triplets(
        source.labels(), open_neighbours(data / "neighbours" / "train.train"), seed=0, top=30, minimum=1
    )
    return TripletPipeline(source, triplets, batch=8, lengths=(3, 9), seed=0, descriptors=8)


@pytest.fixture
def settings(tmp_path):
    return FitSettings(directory=tmp_path / "run", label="teacher", log_every=1, validate_every=4, checkpoint_every=2)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The loop is the same on any number of devices (test_training compares them), and compiles faster on one."""
    monkeypatch.setattr(model_task, "data_mesh", lambda: data_mesh(jax.devices()[:1]))


RECIPE = Recipe(steps=STEPS, learning_rate=1e-3, buckets=(8,))


def model():
    return AMES(CONFIG, nnx.Rngs(0))


def improving(_):
    improving.calls += 1
    return {"map": float(improving.calls)}


improving.calls = 0


def same_parameters(one, other):
    jax.tree.map(np.testing.assert_array_equal, nnx.state(one, nnx.Param), nnx.state(other, nnx.Param))


def test_a_run_leaves_models_and_logs(pipeline, settings):
    best = fit(ModelTask(model(), RECIPE, pipeline, settings, improving))
    same_parameters(best, read_model(settings.directory / "last"))
    assert finished(settings.directory)
    lines = [line for line in read_history(settings.directory) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1].keys() >= {
        "bce",
        "accuracy",
        "gradient_norm",
        "learning_rate",
        "query_length",
        "images_per_second",
        "waiting_for_data",
    }
    assert list((settings.directory / "tensorboard").glob("events*"))
    assert any(np.any(a != b) for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (best, model()))))


def test_what_is_logged_is_on_disk_before_a_checkpoint_is(pipeline, settings, monkeypatch):
    """Else a run that is killed and goes on from the checkpoint would miss it."""
    found, save = [], RunCheckpoints.save

    def saved(checkpoints, step, *arguments):
        lines = [line["step"] for line in read_history(settings.directory) if "loss" in line]
        found.append((step, lines, shown_steps(settings.directory, "loss")))
        save(checkpoints, step, *arguments)

    monkeypatch.setattr(RunCheckpoints, "save", saved)
    fit(ModelTask(model(), RECIPE, pipeline, settings, improving))
    assert found == [(step, [*range(1, step + 1)], [*range(1, step + 1)]) for step in (2, 4, 6, 8)]


def test_a_disk_too_small_for_the_checkpoints_is_told_before_the_work(pipeline, settings, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"needs 0.* MB, and its disk has"):
        fit(ModelTask(model(), RECIPE, pipeline, settings, improving))


def test_two_runs_in_one_folder_are_told_apart(pipeline, settings):
    with lock(settings.directory, home()), pytest.raises(UserError, match="is being written by process"):
        fit(ModelTask(model(), RECIPE, pipeline, settings, improving))


def test_the_best_model_is_the_one_validation_likes(pipeline, settings):
    figures = iter([1.0, 3.0, 2.0])
    best = fit(ModelTask(model(), RECIPE, pipeline, settings, lambda _: {"map": next(figures)}))
    assert facts_of(settings.directory / "best")["step"] == 4
    assert any(
        np.any(a != b)
        for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (best, read_model(settings.directory / "last"))))
    )


def test_sigterm_saves_and_the_rest_ends_the_same(pipeline, settings, tmp_path):
    unbroken = dataclasses.replace(settings, directory=tmp_path / "unbroken")
    fit(ModelTask(model(), RECIPE, pipeline, unbroken, improving))
    calls = []

    def interrupting(_):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("SIGTERM does not wait for the end of a validation")
        return {"map": 0.0}

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedEarly, match="saved at step 4"):
        fit(ModelTask(model(), RECIPE, pipeline, settings, interrupting))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not finished(settings.directory)
    assert RunCheckpoints(settings.directory / "checkpoints", writes=False).model()[1] == 4
    fit(ModelTask(model(), RECIPE, pipeline, settings, improving))
    same_parameters(read_model(settings.directory / "last"), read_model(unbroken.directory / "last"))
    lines = read_history(settings.directory)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    # The validation that was broken off is made up for.
    assert [line["step"] for line in lines if "validation_map" in line] == [0, 4, 8]


class Poisoned(TripletPipeline):
    """The pipeline with a batch of NaN at step 5."""

    def batches(self, start_step=0):
        for batch in super().batches(start_step):
            if batch.step == 5:
                batch.arrays.anchor.features[...] = np.nan
            yield batch


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(pipeline, settings):
    poisoned = Poisoned(**{f.name: getattr(pipeline, f.name) for f in dataclasses.fields(pipeline)})
    with pytest.raises(
        UserError, match=r"loss of step 5 is nan .query length \d+, database length \d+, images \["
    ) as error:
        fit(ModelTask(model(), RECIPE, poisoned, settings, improving))
    assert "last good checkpoint is of step 4" in str(error.value)
    fit(ModelTask(model(), RECIPE, pipeline, settings, improving))
    assert finished(settings.directory)


def test_a_batch_that_devices_cannot_share_is_filled_up(pipeline, settings, tmp_path, monkeypatch):
    six = dataclasses.replace(pipeline, batch=6)
    fit(ModelTask(model(), RECIPE, six, settings, improving))
    monkeypatch.setattr(model_task, "data_mesh", lambda: data_mesh(jax.devices()[:4]))
    with pytest.raises(UserError, match="a batch of 6 triplets is not divisible by 4 devices"):
        fit(ModelTask(model(), RECIPE, six, settings, improving))
    wide = dataclasses.replace(settings, directory=tmp_path / "wide")
    fit(ModelTask(model(), RECIPE, dataclasses.replace(six, multiple=4), wide, improving))
    one, other = (nnx.state(read_model(where.directory / "last"), nnx.Param) for where in (settings, wide))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, other)


def test_programs_are_compiled_once_a_shape_and_steps_are_traced(pipeline, settings):
    recipe = dataclasses.replace(RECIPE, buckets=(4, 8), steps=30)
    settings = dataclasses.replace(settings, profile=(3, 5), validate_every=30, log_every=10)
    settings = dataclasses.replace(settings, checkpoint_every=1000, checkpoint_minutes=0.0)
    task = ModelTask(model(), recipe, pipeline, settings, improving)
    train(task, settings)
    assert task.compiled_step._cache_size() <= 4
    assert list((settings.directory / "profile").rglob("*.xplane.pb"))
    # By the clock: at every step that is logged.
    assert {int(p.name) for p in (settings.directory / "checkpoints").iterdir()} == {20, 30}


@pytest.mark.parametrize("text", ["3", "5:3", "a:b", "3:3"])
def test_steps_to_trace_are_two_rising_numbers(text):
    with pytest.raises(UserError, match="expected START:STOP"):
        trace_steps(text)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "c")
    checkpoints.save(1, TrainState.create(nnx.split(model())[1], RECIPE), {"step": 1}, wait=True)
    other = AMES(dataclasses.replace(CONFIG, feed_forward=64), nnx.Rngs(0))
    with pytest.raises(UserError, match=r"of another model .*\(32, 16\) instead of \(64, 16\)"):
        checkpoints.restore(TrainState.create(nnx.split(other)[1], RECIPE))
    checkpoints.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
from ames_jax.training.checkpoints import RunCheckpoints
from ames_jax.runtime.errors import UserError
checkpoints = RunCheckpoints(Path(sys.argv[1]))
checkpoints.save(1, {"a": jnp.arange(100000.0)}, {"step": 1}, wait=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
try:
    checkpoints.save(2, {"a": jnp.arange(100000.0) + 1}, {"step": 2}, wait=True)
except UserError as error:
    print(error, flush=True)
"""


def test_a_full_disk_leaves_the_last_checkpoint_good(tmp_path):
    """A limit on file sizes, in a process of its own, stands in for the full disk: the system refuses the write alike."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "c"], capture_output=True, text=True, check=False
    )
    assert re.search("could not write the checkpoint of step 2: .*; the checkpoint of step 1 is good", done.stdout), (
        done
    )
    again = RunCheckpoints(tmp_path / "c")
    assert again.latest() == 1
    restored, position = again.restore({"a": jnp.zeros(100000)})
    assert position == {"step": 1}
    np.testing.assert_array_equal(restored["a"], np.arange(100000.0))
    again.close()


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("crc32", "crc33"), lambda _: "{}", lambda _: '{"step": 2}']
)
def test_a_checkpoint_whose_position_is_another_is_damaged(tmp_path, change):
    checkpoints = RunCheckpoints(tmp_path / "c")
    checkpoints.save(1, {"a": jnp.zeros(3)}, {"step": 1}, wait=True)
    path = tmp_path / "c" / "1" / "position" / "metadata"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        checkpoints.restore({"a": jnp.zeros(3)})
    checkpoints.close()


def test_a_checkpoint_whose_times_are_no_whole_numbers_is_damaged(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "c")
    checkpoints.save(1, {"a": jnp.zeros(3)}, {"step": 1}, wait=True)
    checkpoints.close()
    path = tmp_path / "c" / "1" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_timestamp_nsecs": 0.5}))
    with pytest.raises(UserError, match="_CHECKPOINT_METADATA of a step is damaged"):
        RunCheckpoints(tmp_path / "c").latest()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves what it had begun to read
def test_a_damaged_checkpoint_is_told_or_read_right(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "c")
    values = jnp.asarray(np.random.default_rng(0).normal(size=3000).astype(np.float32))
    checkpoints.save(1, {"a": values}, {"step": 1}, wait=True)
    checkpoints.close()
    files = sorted(path for path in (tmp_path / "c" / "1").rglob("*") if path.is_file() and path.stat().st_size)
    rng, told = np.random.default_rng(0), 0
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + rng.bytes(8) + whole[len(whole) // 2 + 8 :])
        again = RunCheckpoints(tmp_path / "c", writes=False)
        try:
            np.testing.assert_array_equal(again.restore({"a": jnp.zeros(3000)})[0]["a"], values)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            told += 1
        again.close()
        path.write_bytes(whole)
    gc.collect()
    assert told


def test_parameters_of_a_checkpoint_are_exported(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "checkpoints")
    state = jax.device_put(TrainState.create(nnx.split(model())[1], RECIPE), on_all(data_mesh()))
    checkpoints.save(3, state, {"step": 3, "model": dataclasses.asdict(CONFIG)}, wait=True)
    checkpoints.close()
    convert([f"--from={tmp_path / 'checkpoints'}", f"--to={tmp_path / 'model'}"])
    same_parameters(load_model(tmp_path / "model"), model())
    with pytest.raises(UserError, match=r"no checkpoint of step 7; has \[3\]"):
        convert([f"--from={tmp_path / 'checkpoints' / '7'}", f"--to={tmp_path / 'model'}"])


@pytest.mark.parametrize("devices", [(4, 1), (1, 4)])
def test_a_checkpoint_goes_on_on_other_devices(tmp_path, devices):
    before, after = (on_all(data_mesh(jax.devices()[:count])) for count in devices)
    state = TrainState.create(nnx.split(model())[1], RECIPE)
    checkpoints = RunCheckpoints(tmp_path / "checkpoints")
    checkpoints.save(3, jax.device_put(state, before), {"step": 3}, wait=True)
    found, position = checkpoints.restore(jax.device_put(jax.tree.map(jnp.zeros_like, state), after))
    checkpoints.close()
    assert position == {"step": 3}
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert {len(array.devices()) for array in jax.tree.leaves(found)} == {devices[1]}


@pytest.mark.parametrize("left", [(), ("_CHECKPOINT_METADATA",), ("state/_METADATA",)])
def test_a_step_that_is_not_whole_is_skipped(tmp_path, capsys, left):
    folder, values = tmp_path / "checkpoints", {"a": jnp.arange(3.0)}
    first = RunCheckpoints(folder)
    first.save(1, values, {"step": 1}, wait=True)
    first.close()
    (folder / "4" / "state").mkdir(parents=True)
    for name in left:
        shutil.copyfile(folder / "1" / name, folder / "4" / name)
    reading = RunCheckpoints(folder, writes=False)
    assert reading.latest() == 1
    reading.close()
    assert f"{folder / '4'}: no whole checkpoint; it is left out" in capsys.readouterr().out
    again = RunCheckpoints(folder)
    assert again.restore(values)[1] == {"step": 1}
    assert "it is removed" in capsys.readouterr().out
    again.save(4, values, {"step": 4}, wait=True)
    assert again.latest() == 4
    again.close()


def test_models_as_directories(tmp_path):
    path = save_model(model(), tmp_path / "student" / "best", {"data_set": "synthetic"})
    same_parameters(load_model(path), model())
    same_parameters(load_model(tmp_path), model())
    assert find_model(tmp_path) == path
    assert facts_of(path) == {"data_set": "synthetic"}
    assert json.dumps(dataclasses.asdict(load_model(path).config)) == json.dumps(dataclasses.asdict(CONFIG))


def test_what_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be read as a model"):
        load_model(tmp_path)


def test_a_kill_while_the_last_model_is_written_leaves_a_run_that_goes_on(tmp_path):
    (tmp_path / "last").mkdir()
    assert not finished(tmp_path)


def test_a_run_that_begins_anew_drops_the_lines_of_the_one_before(tmp_path):
    """Killed before its first checkpoint, it validates before its first step once more."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "validation_map": 1.0}\n{"step": 1, "loss": 2.0}\n{"st')
    with TrainingLog(tmp_path, "teacher", None, 4, {"images": 1}):
        assert read_history(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "validation_map": 1.0}\n{"step": 1, "loss": 2.0}\n')
    with TrainingLog(tmp_path, "teacher", 0, 4, {"images": 1}):
        assert read_history(tmp_path) == [{"step": 0, "validation_map": 1.0}]


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model = AMES(CONFIG, nnx.Rngs(0))
    model.classifier.bias[...] = model.classifier.bias[...] * jnp.nan
    save_model(model, tmp_path)
    with pytest.raises(UserError, match="classifier/bias holds NaN"):
        read_model(tmp_path)
