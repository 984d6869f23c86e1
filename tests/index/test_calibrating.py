"""`search calibrate --index`: hits get a probability, and no match is said; without it nothing is claimed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from ames_jax import search
from ames_jax.index import comparing
from ames_jax.index.collection import SearchIndex
from ames_jax.index.searcher import Searcher
from ames_jax.retrieval.calibration import Calibration, JudgedPairs
from ames_jax.runtime.errors import UserError


@pytest.mark.usefixtures("one_device")
def test_an_index_is_calibrated(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "index", tmp_path / "index")
    pairs = comparing.judged_pairs(Searcher(tmp_path / "index"), lambda name: name.partition("/")[0], 12)
    # Each of 12 pictures among the 11 others, 2 of which show the same.
    assert (len(pairs.logits), pairs.right.sum(), len(pairs.group)) == (132, 24, 12)
    assert pairs.group.tolist() == [row // 3 for row in range(12)]

    # The model is untrained, so its logits say nothing: pairs that it would find if it were not.
    made_up = JudgedPairs(np.where(pairs.right, 1e3, -1e3).astype(np.float32), pairs.right, pairs.query, pairs.group)
    monkeypatch.setattr(comparing, "judged_pairs", lambda *_: made_up)
    assert search.main(["calibrate", f"--index={tmp_path / 'index'}", "--threshold=0.9"]) == 0
    assert "from 132 pairs, 24 of them right" in capsys.readouterr().out
    assert SearchIndex.open(tmp_path / "index").facts["probability"]["threshold"] == 0.9

    command = ["query", f"--image={made / 'asked' / 'scene0' / '5.jpg'}", "--shortlist=3", "--top=4"]
    assert search.main([*command, f"--index={tmp_path / 'index'}"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("no match: the most probable image has ")
    assert told[1].endswith(", a match 0.9 or more")
    assert "prob." in told[2]
    assert search.main([*command, f"--index={tmp_path / 'index'}", "--json"]) == 0
    [query] = json.loads(capsys.readouterr().out)["queries"]
    assert query["match"] is False
    assert [hit["probability"] is None for hit in query["hits"]] == [False] * 3 + [True]
    assert search.main([*command, f"--index={tmp_path / 'index'}", "--query-descriptors=50"]) == 0
    assert search.main([*command, f"--index={made / 'index'}"]) == 0
    assert "prob." not in capsys.readouterr().out


def test_a_match_is_a_hit_above_the_threshold(made):
    searcher = Searcher(made / "index")
    assert searcher.calibration is None
    searcher.calibration = Calibration(1e-3, 10.0, 0.5, 100)
    assert searcher.search(made / "asked" / "scene0" / "5.jpg").match is True


def test_what_is_refused(made):
    with pytest.raises(UserError, match="give --index=INDEX for probabilities, or --run=RUN"):
        search.main(["calibrate"])
    with pytest.raises(UserError, match="--out is missing"):
        search.main(["calibrate", f"--run={made / 'model'}"])
    with pytest.raises(UserError, match="belong to --run"):
        search.main(["calibrate", f"--index={made / 'index'}", "--out=x"])
    with pytest.raises(UserError, match=r"0 labels among 12 images; expected two or more"):
        comparing.judged_pairs(Searcher(made / "index"), lambda name: None, 12)
