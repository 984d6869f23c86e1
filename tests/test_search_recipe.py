"""The recipe of docs/search.md, line by line as it is printed, here on few landmarks and with few steps."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import cv2
import jax
import photo_folder
import pytest
from flax import nnx
from test_train import SMALL

from ames_jax import scenes
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import save_model

ROOT = Path(__file__).parents[1]


def recipe() -> list[list[str]]:
    """The commands of the first block of the document."""
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- recipe -->\s+```bash\n(.*?)```", text, re.DOTALL)[1]
    return [shlex.split(line) for line in block.strip().splitlines()]


def few_steps(folder: Path) -> list[str]:
    """Flags of a training of one step from a given teacher."""
    config = AMESConfig(descriptor_width=128, model_width=16, layers=2, feed_forward=256)
    teacher = save_model(AMES(config, nnx.Rngs(0)), folder / "teacher")
    ends = [
        "--config.optimizer.steps=1",
        "--config.validation.every=1",
        "--config.checkpoint.every=1",
        "--config.distributed=off",
    ]
    return [*SMALL, *ends, f"--config.teacher={teacher}", "--config.report.enabled=false"]


def test_the_recipe_runs(few_landmarks, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(scenes, "build", lambda name, rebuild: few_landmarks)
    photo_folder.write_pictures(tmp_path / "photos", range(2))
    (tmp_path / "photos" / "scene1").rename(tmp_path / "photos" / "castle")
    cv2.imwrite(str(tmp_path / "photo.jpg"), photo_folder.photograph(1, 5)[..., ::-1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = recipe()
    assert len(commands) == 5
    for python, dash_m, module, *flags in commands:
        assert (python, dash_m) == ("python", "-m")
        more = few_steps(tmp_path) if module == "ames_jax.train" else []
        monkeypatch.setattr(sys, "argv", [module, *flags, *more])
        entry = importlib.import_module(module)
        monkeypatch.setattr(entry.cache, "start", lambda: None)
        assert entry.main() == 0
    assert "data:image/webp;base64" in (tmp_path / "found.html").read_text()
    assert (tmp_path / "explanation.png").stat().st_size > 1000
