"""Photographs of one's own: a model calibrated on them, and every method measured on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from ames_jax import AMES, AMESConfig, benchmark, search
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.index.index_json import read_facts
from ames_jax.index.picture_sets import read_scenes
from ames_jax.model.weights import facts_of, save_model
from ames_jax.retrieval import calibration
from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError


def test_a_calibrated_model_searches_photos_among_distractors(
    few_landmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rendered pictures stand for photographs: the test splits as scenes."""
    folder, first = few_landmarks, jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)  # more would compile a program for each length of a share
    monkeypatch.setattr(cache, "start", lambda: None)
    for path in (folder / "images").glob("test_*/*.jpg"):
        scene = tmp_path / "scenes" / path.stem.split("_")[0]
        scene.mkdir(parents=True, exist_ok=True)
        (scene / path.name).write_bytes(path.read_bytes())
    config = AMESConfig(descriptor_width=128, model_width=32, heads=2, layers=1, feed_forward=32, bits=64)
    save_model(AMES(config, nnx.Rngs(0)), tmp_path / "student")
    model = tmp_path / "calibrated"
    made = ["calibrate", f"--run={tmp_path / 'student'}", f"--out={model}", f"--data={folder}", "--shortlist=3"]
    assert search.main(made) == 0
    assert facts_of(model)["statistics"] == SiftStatistics.load(model / "sift_statistics.npz").fingerprint()
    command = [
        "collections", f"--photos={tmp_path / 'scenes'}", f"--model={model}", "--backbone=sift", "--shortlist=3", "--counts=50",
        f"--statistics={model / 'sift_statistics.npz'}", "--query-descriptors=100", f"--json={tmp_path / 'table.json'}",
    ]  # fmt: skip
    others = f"--distractors={folder / 'images' / 'validation_gallery'}"
    settings = []
    for validation in (folder, tmp_path / "scenes"):
        assert benchmark.main([*command, others, f"--validation={validation}"]) == 0
        rows = json.loads((tmp_path / "table.json").read_text())["rows"]
        settings.append([row["settings"] for row in rows])
    assert settings[0] != settings[1]
    assert [row["method"].split(",")[0] for row in rows[2:]] == ["student", "hand-made", "hand-made"]
    again = [
        "calibrate",
        f"--run={model}",
        f"--out={model}",
        f"--data={folder}",
        f"--photos={tmp_path / 'scenes'}",
        others,
    ]
    assert search.main(again) == 0
    assert "without probabilities: " in capsys.readouterr().out  # too few pictures
    monkeypatch.setattr(calibration, "LEAST_PAIRS", 1)
    assert search.main(again) == 0
    probability = facts_of(model)["probability"]
    assert probability.pop("descriptors") == 128  # 1 KB
    scenes = f"--images={tmp_path / 'scenes'}"
    for name, budget, expected in (("same", "1KB", probability), ("other", "512", None)):
        assert search.main(["index", scenes, f"--model={model}", f"--out={tmp_path / name}", f"--budget={budget}",
                            f"--statistics={model / 'sift_statistics.npz'}"]) == 0  # fmt: skip
        assert read_facts(tmp_path / name).get("probability") == expected
    with pytest.raises(UserError, match="--distractors"):
        benchmark.main([*command, f"--distractors={tmp_path / 'none'}"])
    assert "6 distractors" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{model} was trained with other SIFT statistics"):
        benchmark.main([flag for flag in command if not flag.startswith("--statistics")])
    replace(SiftStatistics.load(model / "sift_statistics.npz"), spread=0.5).save(model / "sift_statistics.npz")
    with pytest.raises(UserError, match="trained with other SIFT statistics"):
        search.main(again)
    with pytest.raises(UserError, match="--photos"):
        read_scenes(folder / "images" / "test_query")
