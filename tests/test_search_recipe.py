"""The recipe of docs/search.md, line by line as it is printed, here on few landmarks and with few steps."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import cv2
import jax
import photo_folder
import pytest
from test_train import SMALL

from ames_jax.data import landmarks
from ames_jax.data.landmarks import Settings

ROOT = Path(__file__).parents[1]
FEW = Settings(
    train_landmarks=8, train_views=4, validation_landmarks=3, test_landmarks=3, query_views=1, gallery_views=2,
    descriptors=40, vlad_centres=2, neighbours=2, street_items=6,
)  # fmt: skip


def recipe() -> list[list[str]]:
    """The commands of the first block of the document."""
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- recipe -->\s+```bash\n(.*?)```", text, re.DOTALL)[1]
    return [shlex.split(line) for line in block.strip().splitlines()]


def test_the_recipe_runs(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(landmarks, "build", partial(landmarks.build, tmp_path / "home", FEW, progress=False))
    photo_folder.write_pictures(tmp_path / "photos", range(2))
    (tmp_path / "photos" / "scene1").rename(tmp_path / "photos" / "castle")
    cv2.imwrite(str(tmp_path / "photo.jpg"), photo_folder.photograph(1, 5)[..., ::-1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = recipe()
    assert len(commands) == 5
    for python, dash_m, module, *flags in commands:
        assert (python, dash_m) == ("python", "-m")
        more = [*SMALL, "--config.report.enabled=false"] if module == "ames_jax.train" else []
        monkeypatch.setattr(sys, "argv", [module, *flags, *more])
        entry = importlib.import_module(module)
        monkeypatch.setattr(entry.runtime, "start", lambda: None)
        assert entry.main() == 0
    assert "data:image/jpeg;base64" in (tmp_path / "found.html").read_text()
    assert (tmp_path / "explanation.png").stat().st_size > 1000
