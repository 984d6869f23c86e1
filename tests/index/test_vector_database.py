"""The example of docs/vector_databases.md runs as it is printed, and its first stage is the database."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ames_jax.index.building import Descriptors

DOCUMENT = Path(__file__).parents[2] / "docs" / "vector_databases.md"
QUERY = "scene2/5.jpg"


@pytest.mark.usefixtures("one_device")
def test_the_example_runs(made, tmp_path, monkeypatch, capsys):
    pytest.importorskip("qdrant_client")
    shutil.copytree(made / "model", tmp_path / "runs" / "student_bin")
    shutil.copytree(made / "set", tmp_path / "photos.set")
    shutil.copyfile(made / "asked" / QUERY, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, namespace)
    hits, query = namespace["hits"], namespace["query"]
    photos = Descriptors.open(made / "set")
    by_similarity = np.argsort(-(photos.global_descriptors @ query.global_descriptor), kind="stable")
    first_stage = sorted(hits, key=lambda hit: hit.old_place)
    assert [hit.id for hit in first_stage] == [photos.ids[row] for row in by_similarity]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(capsys.readouterr().out.splitlines()) == 10
