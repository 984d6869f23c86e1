"""The example of docs/vector_databases.md runs as it is printed, and finds what a search index finds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ames_jax.index.searcher import Searcher

DOCUMENT = Path(__file__).parents[2] / "docs" / "vector_databases.md"
QUERY = "scene2/5.jpg"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own imports
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
    hits = namespace["hits"]
    searcher = Searcher(made / "index", query_descriptors=100, lam=0.5, gamma=0.4)
    expected = searcher.search(tmp_path / "photo.jpg", k=12).hits
    # The store of the example holds more descriptors than the index's budget allows: compared as sets, and in size.
    assert {hit.id for hit in hits} == {hit.id for hit in expected}
    assert len(capsys.readouterr().out.splitlines()) == 10
    first_stage = sorted(hits, key=lambda hit: hit.old_place)
    assert [hit.id for hit in first_stage] == [
        hit.id for hit in searcher.search(tmp_path / "photo.jpg", k=12).first_stage
    ]
