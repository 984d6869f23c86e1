"""From a configuration to a run: what a run that goes on may change, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flax import nnx
from ml_collections import ConfigDict

from ames_jax.data.shards import write_about
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import save_model
from ames_jax.runtime.command_line import load_config, parse
from ames_jax.runtime.errors import UserError
from ames_jax.training import run
from ames_jax.training.kept_config import check_numbers, count_given_steps, keep_config
from ames_jax.training.loop import FitSettings
from ames_jax.training.run import model_config, open_run, train_teacher

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_run_goes_on_with_other_teachers_checkpoints_and_hosts(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "student_bin.py")
    keep_config(config, tmp_path)
    config.update(teacher="runs/other", process=1, processes=4, distributed="host:1")
    config.checkpoint.every, config.report.shortlist, config.train_teacher.optimizer.steps = 7, 9, 11
    keep_config(config, tmp_path)
    config.data.update(batch=3, workers=2)
    config.seed = 5
    with pytest.raises(UserError, match=r"begun with other settings: data\.batch was 16, is 3; seed was 0, is 5"):
        keep_config(config, tmp_path)


@pytest.mark.parametrize("key", ["teachers", "teacher_layers", "processed", "log_every_image", "data_directory"])
def test_a_key_that_begins_like_a_free_one_must_agree(tmp_path: Path, key: str) -> None:
    keep_config(ConfigDict({key: 1}), tmp_path)
    with pytest.raises(UserError, match=f"begun with other settings: {key} was 1, is 2"):
        keep_config(ConfigDict({key: 2}), tmp_path)


def test_configurations_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"data.lengths": [3, 9], "report.gone": 1, "seed": 0}, indent=1))
    keep_config(ConfigDict({"data": {"lengths": (3, 9)}, "seed": 0}), tmp_path)


def test_a_run_from_before_a_key_goes_on_with_the_value_that_it_had(tmp_path: Path) -> None:
    keep_config(ConfigDict({"model": {"match_weight": 4.0}}), tmp_path)
    keep_config(ConfigDict({"model": {"match_weight": 4.0, "match_form": "query", "match_learned": False}}), tmp_path)
    with pytest.raises(UserError, match=r"model.match_form was None, is 'mutual'"):
        keep_config(ConfigDict({"model": {"match_weight": 4.0, "match_form": "mutual"}}), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.batch", "0", "0: expected 1 or more"),
        ("data.workers", "-1", "-1: expected 0 or more"),
        ("data.drop", "2", r"2.0: expected 0 to 1"),
        ("data.lengths", "9,3", r"\(9, 3\): expected two numbers, the second larger"),
        ("data.buckets", "48,0", r"\(48, 0\): expected 1 or more"),
        ("model.heads", "0", "0: expected 1 or more"),
        ("optimizer.learning_rate", "nan", "nan: expected 0 or more"),
        ("seed", "-1", "-1: expected 0 or more"),
        ("train_teacher.data.accumulate", "0", "0: expected 1 or more"),
        ("validation.every", "0", "0: expected 1 or more"),
        ("model.match_weight", "inf", "inf: expected a number"),
    ],
)
def test_numbers_that_cannot_be_are_told_before_anything_is_made(
    key: str, value: str, expected: str, tmp_path: Path
) -> None:
    command = parse("about", "student_bin", [f"--config.{key}={value}"])
    with pytest.raises(UserError, match=f"--config.{key}={expected}"):
        open_run(command.config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_the_numbers_of_every_configuration_can_be(name: str) -> None:
    check_numbers(load_config(name))


def test_matching_by_hand_is_not_trained() -> None:
    with pytest.raises(UserError, match="hand-made matching is not trained; search index --model=mutual makes it"):
        model_config(ConfigDict({"model": {"kind": "matching"}}), 64)


def test_settings_of_a_run_are_named() -> None:
    with pytest.raises(TypeError):
        FitSettings(Path("run"), "teacher", 10)  # type: ignore[misc]


@pytest.mark.parametrize("section", ["optimizer", "train_teacher.optimizer"])
def test_steps_on_the_command_line_count_where_the_configuration_has_epochs(section: str) -> None:
    command = parse("about", "student_bin:gldv2", [f"--config.{section}.steps=20"])
    count_given_steps(command.config, command.given)
    trains = {"optimizer": command.config.optimizer, "train_teacher.optimizer": command.config.train_teacher.optimizer}
    counted = trains.pop(section)
    assert (counted.epochs, counted.steps) == (None, 20)
    assert [other.epochs for other in trains.values()] == [15.0]


def test_steps_and_epochs_on_one_command_line_are_refused() -> None:
    command = parse("about", "teacher_fp:gldv2", ["--config.optimizer.steps=20", "--config.optimizer.epochs=2"])
    with pytest.raises(UserError, match=r"optimizer\.steps and --config\.optimizer\.epochs: give one of them"):
        count_given_steps(command.config, command.given)
    command = parse("about", "teacher_fp", ["--config.optimizer.epochs=2"])
    count_given_steps(command.config, command.given)
    assert command.config.optimizer.epochs == 2.0


def test_an_unknown_teacher_is_told_before_data_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "data_root", lambda config: pytest.fail("data are made"))
    config = load_config(CONFIGS / "student_bin.py")
    config.update(teacher="sifft", distributed="off")
    with pytest.raises(UserError, match=r"unknown model 'sifft'.*did you mean sift"):
        open_run(config, tmp_path)


def test_a_teacher_that_was_stopped_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    model = AMES(AMESConfig(descriptor_width=8, model_width=8, heads=1, layers=1, feed_forward=8), nnx.Rngs(0))
    role = tmp_path / "run" / "teacher"
    save_model(model, role / "best", {"step": 0, "backbone": "sift"})
    (role / "checkpoints").mkdir()
    config = ConfigDict({"teacher": str(tmp_path / "run")})
    with pytest.raises(
        UserError, match=r"not finished \(its best model is of step 0\).*--config.teacher=.*teacher/best"
    ):
        train_teacher(config, tmp_path, tmp_path)
    config.teacher = str(role / "best")
    (tmp_path / "set").mkdir()
    write_about(tmp_path / "set", {"backbone": "dinov2"})
    with pytest.raises(UserError, match=r"teacher/best was trained on sift descriptors, these are dinov2"):
        train_teacher(config, tmp_path / "set", tmp_path)
    assert train_teacher(config, tmp_path, tmp_path).config == model.config
    save_model(model, role / "last", {"finished": True})
    config.teacher = str(tmp_path / "run")
    assert train_teacher(config, tmp_path, tmp_path).config == model.config
