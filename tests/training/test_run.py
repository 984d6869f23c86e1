"""From a configuration to a run: what a run that goes on may change, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.errors import UserError
from ames_jax.training.loop import FitSettings
from ames_jax.training.run import keep_config

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


def test_settings_of_a_run_are_named() -> None:
    with pytest.raises(TypeError):
        FitSettings(Path("run"), "teacher", 10)  # type: ignore[misc]
