"""Indexes on disk: those of earlier versions of the package open, damaged ones do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import ExtractedImage
from ames_jax.index.collection import SearchIndex, picture_of
from ames_jax.index.searcher import Searcher
from ames_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "index"
pytestmark = pytest.mark.usefixtures("one_device")


def test_an_index_of_before_0_2_gives_the_same_hits():
    """Made by version 0.1 in two parts, SQfp16; the figures are those that it printed."""
    pytest.importorskip("faiss")
    searcher = Searcher(GOLDEN, shortlist=4)
    searcher.index.verify()
    assert searcher.index.ids[3:5] == ["scene1/1.jpg", "scene2/0.jpg"]
    assert searcher.index.picture(4) == Path("/photos/scene2/0.jpg")
    assert searcher.index.read(np.array([5, 0])).features.shape == (2, 8, 2)
    rng = np.random.default_rng(0)
    local, vector = (rng.standard_normal(shape, dtype=np.float32) for shape in ((20, 128), 128))
    hits = searcher.search(ExtractedImage(DescriptorSet(local), vector / np.linalg.norm(vector)), k=6).hits
    assert [hit.row for hit in hits] == [0, 1, 2, 3, 5, 4]
    np.testing.assert_allclose([hit.score for hit in hits[:4]], [0.2467349, 0.2450373, 0.2157581, 0.1934827], atol=1e-5)
    np.testing.assert_allclose([hit.logit for hit in hits[:4]], [0.0734143, 0.0358086, 0.0925843, 0.0932614], atol=1e-5)


def test_what_is_not_a_whole_index_is_refused(made, grown):
    with pytest.raises(UserError, match="is not a search index"):
        SearchIndex.open(made / "set")
    file = grown / "index" / "part-00000" / "global.faiss"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"global.faiss has \d+ bytes, expected \d+: it was cut short"):
        SearchIndex.open(grown / "index")
    (grown / "index" / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index.json: cannot be read as JSON"):
        SearchIndex.open(grown / "index")


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg"])
def test_an_id_that_leads_out_of_the_pictures_has_none(name):
    assert picture_of("a/x..jpg", {"folder": "/photos", "suffix": ""}) == Path("/photos/a/x..jpg")
    assert picture_of(name, {"folder": "/photos", "suffix": ""}) is None
    assert picture_of(name, None, Path("/photos")) is None
