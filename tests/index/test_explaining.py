"""Correspondences from attention, and the measurements of search, on a handful of pictures."""

from __future__ import annotations

import json

import cv2
import numpy as np
import photo_folder
import pytest

from ames_jax import scenes, search
from ames_jax.index.explaining import correspondences
from ames_jax.model.attention import CrossWeights


def test_descriptors_that_look_at_each_other_correspond():
    """Query 0 ↔ image 2 and query 1 ↔ image 0, the second stronger; query 2 looks at 0, which looks elsewhere."""
    query, database = np.full((1, 2, 3, 4), 0.05), np.full((1, 2, 3, 4), 0.05)
    for i, j, weight in ((0, 2, 0.5), (1, 0, 0.8)):
        query[..., i, 1 + j] = database[..., j, i] = weight
    query[..., 2, 1] = 0.9
    layer = CrossWeights(query, np.zeros((1, 2, 7)), database)
    pairs, strengths = correspondences([layer, layer])
    assert pairs.tolist()[:2] == [[1, 0], [0, 2]]
    np.testing.assert_allclose(strengths[:2], [0.8, 0.5], rtol=1e-6)


def test_an_image_without_descriptors_has_no_correspondence():
    layer = CrossWeights(np.ones((1, 2, 3, 1)), np.zeros((1, 2, 4)), np.zeros((1, 2, 0, 4)))
    pairs, strengths = correspondences([layer])
    assert pairs.shape == (0, 2)
    assert strengths.size == 0


@pytest.mark.usefixtures("one_device")
def test_quality_and_speed_are_printed(few_landmarks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr(scenes, "build", lambda name: few_landmarks)
    statistics = few_landmarks / "sift_statistics.npz"
    model = photo_folder.write_model(tmp_path / "model", statistics)
    sizes = ["--shortlist=5", "--query-descriptors=10", f"--model={model}", f"--json={tmp_path / 'figures.json'}"]
    assert search.main(["quality", "--counts", "8", *sizes]) == 0
    assert "| hand-made matching" in capsys.readouterr().out
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row.get("bytes") for row in rows] == [None, 32, 32]
    assert all(0 < row["map"] <= 100 for row in rows)
    cv2.imwrite(str(tmp_path / "photo.jpg"), photo_folder.photograph(0, 0))
    flags = [f"--image={tmp_path / 'photo.jpg'}", f"--statistics={statistics}", "--count=300", "--budget=32"]
    assert search.main(["speed", *flags, *sizes]) == 0
    assert "300 images, first 5 re-ranked, 10 query × 8 stored descriptors" in capsys.readouterr().out
    facts = json.loads((tmp_path / "figures.json").read_text())
    header_of_npy = 128
    assert facts["bytes_per_image"]["local bits"] * 300 == 300 * 32 + header_of_npy
