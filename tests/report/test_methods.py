"""Methods on photographs of several collections: settings come from the other collections alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from photo_folder import scene

from ames_jax import benchmark
from ames_jax.report.methods import HeldOut, collection_of, collections_table, hold_out
from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError


def test_a_setting_is_chosen_where_it_is_not_measured() -> None:
    """Setting 0 is the best of a, 1 of b and c alike, 2 of c."""
    collections = np.array(["a", "a", "b", "c"])
    precisions = np.array([[1.0, 1.0, 0.2, 0.2], [0.1, 0.3, 0.9, 0.8], [0.0, 0.0, 0.1, 0.9]])
    kept, chosen = hold_out(precisions, collections)
    assert chosen == {"a": 1, "b": 0, "c": 0}
    np.testing.assert_array_equal(kept, [0.1, 0.3, 0.2, 0.2])
    found = HeldOut("ours", 1024, kept, {})
    assert found.figures(collections) == pytest.approx({"a": 20, "b": 20, "c": 20, "all": 20, "mean": 20})
    assert "| ours   | 1 KB" in collections_table([found], collections)


def test_the_collection_is_in_the_name_of_the_scene() -> None:
    """Before "__", else before the first "_"."""
    assert [collection_of(name) for name in ("toys__red_car", "wxbs_kremlin", "castle")] == ["toys", "wxbs", "castle"]


def test_every_method_is_measured_on_each_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three scenes of two collections with SIFT; another collection's pictures are distractors."""
    monkeypatch.setattr(cache, "start", lambda: None)
    for number, name in enumerate(("one__a", "one__b", "two__c")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        picture = scene(number)
        for view in range(2):
            cv2.imwrite(str(tmp_path / "photos" / name / f"{view}.png"), picture[view * 8 :, view * 8 :])
    command = ["collections", f"--photos={tmp_path / 'photos'}", "--backbone=sift", "--shortlist=3", "--counts=16"]
    assert benchmark.main([*command, f"--json={tmp_path / 'found.json'}"]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["bytes"] for row in rows] == [0, 0, 128, 4096, 128]
    assert all(set(row["map"]) == {"one", "two", "all", "mean"} and len(row["average_precision"]) == 6 for row in rows)
    assert "| one (4) |" in capsys.readouterr().out.replace("  ", " ").replace("  ", " ")
    with pytest.raises(UserError, match=r"--bits=32 belongs to --model=mutual: sift has bits of its own"):
        benchmark.main([*command, "--model=sift", "--bits=32"])
    (tmp_path / "photos" / "two__c").rename(tmp_path / "photos" / "one__c")
    with pytest.raises(UserError, match="all scenes are of one collection, one"):
        benchmark.main(command)
