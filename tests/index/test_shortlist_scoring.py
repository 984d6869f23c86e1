"""Shortlists looked at again through sure matches."""

from __future__ import annotations

import numpy as np
import pytest

from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.index.shortlist_scoring import SHARE, ShortlistScoring, Through
from ames_jax.model.initialisation import learned_matching
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.plans import Plan
from ames_jax.retrieval.scorer import Scorer
from ames_jax.runtime.errors import UserError

GENERATOR = np.random.default_rng(0)
LEFT, RIGHT, OTHER, FOURTH = (GENERATOR.standard_normal((12, 32)).astype(np.float32) for _ in range(4))
MODEL = learned_matching(GENERATOR.standard_normal((500, 32)).astype(np.float32), 32)
PACKER = BitPacker(MODEL)
# Both sides of a place, its left, its right, and two other things.
PICTURES = [np.concatenate([LEFT, RIGHT]), LEFT, RIGHT, OTHER, FOURTH]
DATABASE = PACKER.pack(stack([DescriptorSet(picture) for picture in PICTURES], 24))
QUERY = stack([DescriptorSet(LEFT + 0.1 * GENERATOR.standard_normal(LEFT.shape).astype(np.float32))], 24)
PLACES = np.array([[3, 2, 1, 4, 0]])
SIMILARITIES = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32)


def scored(through, plan=None, similarities=SIMILARITIES):
    return ShortlistScoring(MODEL, PACKER, 0.6, 0.8, plan, through).score(QUERY, DATABASE, PLACES, similarities)[0]


def test_an_image_that_matches_a_sure_match_is_found_through_it():
    alone, found = scored(None), scored(Through(5, 1.0))
    assert alone.through.tolist() == [-1] * 5
    sure, right = 4, 1  # columns of the picture of both sides, and of its right alone
    assert alone.logits[sure] > 1 > alone.logits[right]
    assert found.through.tolist() == [-1, sure, -1, -1, -1]
    link = Scorer(MODEL).shortlist(DATABASE[0], DATABASE[2:3])[0]
    assert found.logits[right] == pytest.approx(SHARE * min(alone.logits[sure], link), rel=1e-6)
    kept = found.through < 0
    np.testing.assert_array_equal(found.logits[kept], alone.logits[kept])


def test_nothing_is_found_through_what_is_not_sure_or_not_there():
    assert (scored(Through(5, 100.0)).through < 0).all()
    assert (
        scored(Through(1, 1.0)).through < 0
    ).all()  # the first of the ranking is the query's left, which no right matches
    missing = np.array([[0.9, 0.8, 0.7, 0.6, -np.inf]], np.float32)  # of an approximate first stage
    assert (scored(Through(5, 1.0), similarities=missing).through < 0).all()


def test_of_a_plan_the_images_of_its_last_stage_are_looked_at():
    found = scored(Through(5, 1.0), Plan.parse("6x24@3,24x24", 5))
    assert len(found.columns) == 3
    assert set(found.through.tolist()) <= {-1, *found.columns.tolist()}
    assert sorted([*found.columns, *found.rest]) == [0, 1, 2, 3, 4]


def test_what_says_from_where_on_a_match_is_sure():
    assert Through.of(2.0, None, "index") == Through(5, 2.0)
    assert Through.of(2.0, 0, "index") is None
    assert Through.of(None, None, "index") is None
    with pytest.raises(UserError, match="does not say from which logit on a match is sure"):
        Through.of(None, 3, "index")
    with pytest.raises(UserError, match="through=-1: expected a whole number of at least 0"):
        Through.of(2.0, -1, "index")
