"""The notebooks run from their first cell to their last, here on small data sets and untrained models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import numpy as np
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


def run(name: str, root: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs all cells on the data set `root` in place of the embedded landmarks."""
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(scenes, "build", lambda name: root)
    monkeypatch.setattr(cache, "start", lambda: None)
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
    monkeypatch.setenv("AMES_JAX_MODEL", str(tmp_path / "model"))
    run("evaluate.ipynb", root, tmp_path / "work", monkeypatch)
    assert {"results.json", "tradeoff-mAP.png", "gallery.png"} <= {path.name for path in (tmp_path / "work").iterdir()}
    assert "hand-made, bits" in capsys.readouterr().out


def test_the_search_notebook_runs_and_prints_the_same_figures_again(few_landmarks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    figures = []
    for _ in range(2):  # the first run leaves an index with pictures more
        run("search_your_photos.ipynb", few_landmarks, tmp_path / "work", monkeypatch)
        printed = capsys.readouterr().out
        figures.append(re.search(r"mAP of the global search \d+\.\d, re-ranked \d+\.\d", printed)[0])
        assert "9 images" in printed
    assert figures[0] == figures[1]
    pictures = {"gallery.html", "gallery.png", "explanation.png"}
    assert pictures <= {path.name for path in (tmp_path / "work").iterdir()}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that is no checkout, with a ZIP file of one, and the commands that are called in it."""
    checkout = tmp_path / "source" / "ames_jax-main"
    (checkout / "configs").mkdir(parents=True)
    (checkout / "configs" / "evaluate.py").touch()
    shutil.copy(NOTEBOOKS.parent / "requirements.txt", checkout)
    shutil.make_archive(tmp_path / "upload", "zip", checkout.parent)
    (tmp_path / "colab").mkdir()
    monkeypatch.chdir(tmp_path / "colab")
    called = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: called.append(command) or subprocess.CompletedProcess(command, 1)
    )
    return called


@pytest.mark.parametrize("name", ["evaluate.ipynb", "search_your_photos.ipynb"])
def test_the_first_cell_installs_an_uploaded_checkout_beside_the_jax_of_colab(name, elsewhere, monkeypatch, capsys):
    files = SimpleNamespace(upload=lambda: {"../upload.zip": b""})
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(files=files))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    exec(code_cells(name)[0], {})
    assert Path.cwd().name == "ames_jax-main"
    ((*_, constraints), needed) = elsewhere[0][:7], elsewhere[0][7:]
    kept = (Path.cwd().parents[1] / constraints).read_text().split()
    assert f"jax=={jax.__version__}" in kept
    assert not {"jax", "jaxlib", "numpy"} & {re.split("[>=[]", line)[0] for line in needed}
    assert {"jaxtyping", "flax", "grain"} <= {re.split("[>=[]", line)[0] for line in needed}
    printed = capsys.readouterr().out
    assert f"JAX {jax.__version__} on " in printed
    assert "gives this notebook a GPU or a TPU" in printed


@pytest.mark.parametrize(
    ("address", "message"),
    [("", "Put the address of the repository into REPOSITORY"), ("x://y", "git cannot clone x://y")],
)
def test_a_wrong_address_in_the_first_cell_is_one_line(address, message, elsewhere):
    cell = code_cells("evaluate.ipynb")[0].replace('REPOSITORY = ""', f"REPOSITORY = {address!r}")
    with pytest.raises(SystemExit, match=message) as stop:
        exec(cell, {})
    assert "\n" not in str(stop.value)


def test_the_notebooks_begin_alike():
    assert code_cells("evaluate.ipynb")[0] == code_cells("search_your_photos.ipynb")[0]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_clean(path):
    """No outputs, no execution counts: what is shown is what the reader ran."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
