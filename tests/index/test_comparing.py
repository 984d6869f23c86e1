"""`compare` gives two pictures the score that a search gives them."""

import numpy as np
import pytest
from photo_folder import photograph

from ames_jax import Searcher, compare
from ames_jax.index import comparing
from ames_jax.runtime.errors import UserError


def test_two_pictures_of_a_scene_are_more_alike_than_two_scenes():
    same = compare(photograph(0, 0), photograph(0, 1))
    other = compare(photograph(0, 0), photograph(1, 1))
    assert same.score > other.score
    assert same.logit > other.logit


@pytest.mark.usefixtures("one_device")
def test_the_score_is_that_of_a_search(made, monkeypatch):
    monkeypatch.setattr(comparing, "DATABASE_DESCRIPTORS", 20)  # as the index, by its budget
    searcher = Searcher(made / "index", keep_query=True)
    query, differences = made / "asked" / "scene2" / "5.jpg", []
    for hit in searcher.search(query).hits:
        picture = searcher.index.picture_path(hit.row)
        found = compare(query, picture, str(made / "model"), backbone=searcher.backbone)
        assert found.global_similarity == pytest.approx(hit.global_similarity, abs=1e-5)
        differences.append(abs(found.logit - hit.logit))
    # The index's descriptors went through float16, which may turn a bit that lies at the border.
    assert len(differences) == 12
    assert np.median(differences) < 2e-6
    assert max(differences) < 2e-3


def test_what_cannot_be_compared_is_one_line(tmp_path, made):
    with pytest.raises(UserError, match=r"a\.jpg"):
        compare(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with pytest.raises(UserError, match="expected one of sift, dinov2_ames"):
        compare(photograph(0, 0), photograph(0, 1), "sitf")
