"""The evaluation notebook runs from its first cell to its last, here on a small data set and an untrained model."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import jax
import numpy as np
import synthetic
from flax import nnx

from ames_jax.checkpoints import save_model
from ames_jax.data import landmarks
from ames_jax.data.evaluation_set import EvaluationSet
from ames_jax.similarity import AMES, AMESConfig

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "evaluate.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    offline = [cell for cell in cells if "network" not in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in offline if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    root = synthetic.write(tmp_path / "set", labels=24)
    test = EvaluationSet.load(root, "test")
    for name in (*test.query_ids, *test.database_ids):
        path = root / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((24, 32, 3), 128, np.uint8))
    shape = AMESConfig(descriptor_width=synthetic.WIDTH, bits=16, model_width=16, layers=1, feed_forward=16)
    save_model(AMES(shape, nnx.Rngs(0)), tmp_path / "model")
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(landmarks, "build", lambda: root)
    monkeypatch.setenv("AMES_JAX_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("AMES_JAX_NOTEBOOK", str(tmp_path / "work"))
    monkeypatch.chdir(NOTEBOOK.parent)
    namespace: dict = {}
    for number, cell in enumerate(code_cells()):
        exec(compile(cell, f"notebook cell {number}", "exec"), namespace)
    assert {"results.json", "tradeoff-mAP.png", "gallery.png"} <= {path.name for path in (tmp_path / "work").iterdir()}
    assert "match kernel on bits" in capsys.readouterr().out


def test_the_notebook_is_clean():
    """No outputs, no execution counts: what is shown is what the reader ran."""
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
