"""The notebooks run from their first cell to their last, here on small data sets and untrained models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import jax
import numpy as np
import photo_folder
import pytest
import synthetic
from flax import nnx

from ames_jax import scenes
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import save_model
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime import cache

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def code_cells(name: str) -> list[str]:
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    offline = [cell for cell in cells if "network" not in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in offline if cell["cell_type"] == "code"]


def run(name: str, model: Path, root: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs all cells with this model on the data set `root` in place of the embedded landmarks."""
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(scenes, "build", lambda name: root)
    monkeypatch.setattr(scenes, "build", lambda preset: root)
    monkeypatch.setattr(cache, "start", lambda: None)
    monkeypatch.setenv("AMES_JAX_MODEL", str(model))
    monkeypatch.setenv("AMES_JAX_NOTEBOOK", str(workdir))
    monkeypatch.chdir(NOTEBOOKS)
    namespace: dict = {}
    for number, cell in enumerate(code_cells(name)):
        exec(compile(cell, f"{name} cell {number}", "exec"), namespace)


def test_the_evaluation_notebook_runs(tmp_path, monkeypatch, capsys):
    root = synthetic.write(tmp_path / "set", labels=24)
    test = RetrievalSet.load(root, "test")
    for name in (*test.queries.ids(), *test.database.ids()):
        path = root / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((24, 32, 3), 128, np.uint8))
    shape = AMESConfig(descriptor_width=synthetic.WIDTH, bits=16, model_width=16, layers=1, feed_forward=16)
    save_model(AMES(shape, nnx.Rngs(0)), tmp_path / "model")
    run("evaluate.ipynb", tmp_path / "model", root, tmp_path / "work", monkeypatch)
    assert {"results.json", "tradeoff-mAP.png", "gallery.png"} <= {path.name for path in (tmp_path / "work").iterdir()}
    assert "match kernel on bits" in capsys.readouterr().out


def test_the_search_notebook_runs(few_landmarks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    photo_folder.write_model(tmp_path / "model", few_landmarks / "sift_statistics.npz")
    run("search_your_photos.ipynb", tmp_path / "model", few_landmarks, tmp_path / "work", monkeypatch)
    pictures = {"gallery.html", "gallery.png", "explanation.png"}
    assert pictures <= {path.name for path in (tmp_path / "work").iterdir()}
    printed = capsys.readouterr().out
    assert re.search(r"mAP of the global search \d+\.\d, re-ranked \d+\.\d", printed)
    assert "9 images" in printed


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_clean(path):
    """No outputs, no execution counts: what is shown is what the reader ran."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
