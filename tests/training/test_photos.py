"""`--config=photos`: from a folder of pictures to a teacher, a student and their table, in one command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from small_networks import write_networks

from ames_jax import train
from ames_jax.benchmarks.extraction_speed import dead_leaves
from ames_jax.model.weights import facts_of
from ames_jax.runtime.errors import UserError

SIZES = ["data.descriptors=8", "data.lengths=3,9", "data.buckets=(8,)", "data.batch=8", "data.top=30"]
ROLE = [*SIZES, "model.model_width=16", "model.heads=1", "optimizer.steps=2", "log_every=1", "validation.every=2"]
SMALL = [
    "--config.distributed=off",
    *(f"--config.{section}{setting}" for section in ("", "train_teacher.") for setting in ROLE),
    "--config.model.bits=16", "--config.report.query_descriptors=8", "--config.report.database_descriptors=8",
    "--config.views.count=2", "--config.views.queries=1", "--config.views.descriptors=16", "--config.views.side=96",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command with a small model in a work folder, and gives its exit code."""
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(train.cache, "start", lambda: None)

    def call(*flags: str) -> int:
        return train.main(["--config=photos", f"--workdir={tmp_path / 'run'}", *SMALL, *flags])

    return call


def write_photos(folder: Path) -> str:
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.jpg"), dead_leaves(number, 96, 96))
    return f"--config.photos={folder}"


def test_a_folder_becomes_a_model_and_goes_on_with_the_same_photographs_alone(run, tmp_path: Path, capsys) -> None:
    flags = [write_photos(tmp_path / "photos"), "--config.backbone=sift", "--config.global_backbone="]
    assert run(*flags) == 0
    workdir = tmp_path / "run"
    assert facts_of(workdir / "student" / "best")["backbone"] == "sift"
    assert {row["method"] for row in json.loads((workdir / "results.json").read_text())["rows"]} >= {
        "teacher",
        "student",
    }
    assert (workdir / "gallery.png").stat().st_size > 1000
    assert "8 photographs, each taken for a scene of its own: 6 to learn from" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "photos" / "new.jpg"), dead_leaves(9, 96, 96))
    with pytest.raises(UserError, match=r"The photographs are others than those that this run began with"):
        run(*flags)


def test_mistakes_are_one_line(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--config.photos is missing"):
        run()
    xfeat, vit = write_networks(tmp_path, monkeypatch)
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(UserError, match=r"vit.pt: the weights do not fit the network"):
        run(photos, f"--config.weights={vit}", f"--config.global_weights={vit}")
    with pytest.raises(UserError, match=r"--global=xfeat: it has no global descriptor"):
        run(photos, f"--config.weights={xfeat}", "--config.global_backbone=xfeat")
    with pytest.raises(UserError, match=r"--backbone=xfaet.*did you mean"):
        run(photos, "--config.backbone=xfaet")
    assert not (tmp_path / "run").exists()  # no mistake is kept
