"""Correspondences from attention, and the measurements of search, on a handful of pictures."""

from __future__ import annotations

import json

import cv2
import numpy as np
import photo_folder
import pytest

from ames_jax import search
from ames_jax.index.explaining import correspondences, explain
from ames_jax.index.searcher import Searcher
from ames_jax.model.attention import CrossWeights
from ames_jax.model.elvis import ELViSConfig
from ames_jax.report.explanation import draw_explanation


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
def test_speed_is_that_of_a_larger_index_of_the_same_kind(made, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "photo.jpg"), photo_folder.photograph(0, 0))
    flags = [f"--image={tmp_path / 'photo.jpg'}", f"--index={made / 'index'}", "--count=300", "--budget=32"]
    flags += ["--shortlist=5", "--query-descriptors=10", f"--json={tmp_path / 'figures.json'}"]
    assert search.main(["speed", *flags]) == 0
    assert "300 images, first 5 re-ranked, 10 query × 8 stored descriptors" in capsys.readouterr().out
    facts = json.loads((tmp_path / "figures.json").read_text())
    header_of_npy = 128
    assert facts["bytes_per_image"]["local bits"] * 300 == 300 * 32 + header_of_npy


@pytest.mark.usefixtures("one_device")
def test_an_index_of_elvis_explains_by_its_plan(made, tmp_path):
    config = ELViSConfig(descriptor_width=128, bits=32, model_width=16)
    photo_folder.write_model(tmp_path / "model", made / "statistics.npz", config=config)
    command = ["index", f"--descriptors={made / 'set'}", f"--model={tmp_path / 'model'}", f"--out={tmp_path / 'index'}"]
    assert search.main([*command, "--budget=80B"]) == 0
    searcher = Searcher(tmp_path / "index", query_descriptors=30)
    explained = explain(searcher, made / "asked" / "scene1" / "5.jpg", "scene1/0.jpg")
    assert explained.kind == "elvis"
    assert 0 < explained.hit.logit < 50  # a vote of each of 30 + 20 descriptors
    assert len(explained.pairs) > 0
    assert 0 < explained.attention.max() <= 1 + 1e-5
    np.testing.assert_array_less(explained.strengths[1:], explained.strengths[:-1] + 1e-9)
    draw_explanation(explained, tmp_path / "why.png")
    assert cv2.imread(str(tmp_path / "why.png")).std() > 1
