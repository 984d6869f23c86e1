"""docs/extending.md: its backbone and its matcher work as they are printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic
from photo_folder import write_pictures

from ames_jax import extract
from ames_jax.data.shards import open_split
from ames_jax.extraction.backbones import open_backbone, reopen_backbone
from ames_jax.extraction.images import load_image
from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.errors import UserError

DOCUMENT = Path(__file__).parents[1] / "docs" / "extending.md"
BACKBONE, MATCHER = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """`colours.py` on Python's path."""
    path = tmp_path / "colours.py"
    path.write_text(BACKBONE)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("colours", None)


def test_the_backbone_extracts_and_is_opened_again(module, tmp_path, monkeypatch):
    monkeypatch.setattr(extract.cache, "start", lambda: None)
    pictures, out = write_pictures(tmp_path / "pictures", range(2), scenes=1), tmp_path / "out"
    command = [f"--images={pictures}", "--backbone=colours:Colours", "--descriptors=9", f"--out={out}"]
    assert extract.main(command) == 0
    [again] = reopen_backbone(out).extract([load_image(pictures / "scene0" / "1.jpg")])
    stored = open_split(out, "images")[1].descriptors
    np.testing.assert_allclose(stored.features, again.local.features, atol=1e-3)
    assert stored.features.shape == (9, 3)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("colours:Colour", "expected package.module:Class on Python's path; .*Colour"),
        ("colors:Colours", "No module named 'colors'"),
        (":Colours", "expected package.module:Class"),
        ("colours:np", "a backbone needs open, fit"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_is_no_backbone_is_one_line(name, told):
    with pytest.raises(UserError, match=f"--backbone={name}: .*{told}"):
        open_backbone(name)


def test_a_class_under_another_name_is_refused(module):
    module.write_text(BACKBONE.replace('"colours:Colours"', '"sift"'))
    with pytest.raises(UserError, match="its name is 'sift'"):
        open_backbone("colours:Colours")


def test_the_matcher_is_compared_with_others_by_its_name(tmp_path, monkeypatch, capsys):
    synthetic.write(tmp_path / "set")
    (tmp_path / "chamfer.py").write_text(MATCHER)
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config("evaluate")
    config.update(
        data_dir=str(tmp_path / "set"), dataset="test", tune_on="validation", rerank="20", database_descriptors=4
    )
    for model, methods in (("chamfer:Chamfer", ["chamfer"]), ("kernel,chamfer:Chamfer", ["kernel", "chamfer"])):
        config.model = model
        rows = evaluate(config, tmp_path / "run")["rows"]
        assert [row["method"] for row in rows] == methods
        assert rows[-1]["bytes_per_image"] == 2 * synthetic.WIDTH * 4
    assert "| chamfer | " in capsys.readouterr().out
    for model, told in (
        ("chamfer:np", "expected a subclass of"),
        ("chamfer:Chamfers", "expected package.module:Class"),
    ):
        config.model = model
        with pytest.raises(UserError, match=f"--config.model={model}: {told}"):
            evaluate(config, tmp_path / "run")
    sys.modules.pop("chamfer")
