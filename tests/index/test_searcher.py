"""Query and re-rank: the same list from every way in."""

from __future__ import annotations

import numpy as np
import photo_folder
import pytest

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import ExtractedImage
from ames_jax.extraction.images import load_image
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.reranking import rerank
from ames_jax.index.searcher import STAGES, Searcher
from ames_jax.retrieval.ranking import ensemble
from ames_jax.retrieval.refinement import Lists, refine
from ames_jax.retrieval.scorer import score_shortlist
from ames_jax.runtime.errors import UserError

QUERY_DESCRIPTORS = 30
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def searcher(made, one_device) -> Searcher:
    return Searcher(made / "index", shortlist=8, query_descriptors=QUERY_DESCRIPTORS)


def test_a_query_is_what_its_parts_say(made, searcher):
    """Global similarities, logits and order, computed here by hand."""
    path = made / "asked" / "scene2" / "5.jpg"
    result = searcher.search(path, k=12)
    asked = searcher.backbone.extract([load_image(path)])[0]
    similarities = np.load(made / "set" / "global" / "images.npy") @ asked.global_descriptor
    order = np.argsort(-similarities, kind="stable")
    assert [hit.row for hit in result.first_stage] == order.tolist()
    index = searcher.index
    query = DescriptorSet(asked.local.truncate(QUERY_DESCRIPTORS).features)
    logits = score_shortlist(index.model, query, index.read(order[:8]))
    scores = ensemble(similarities[order[:8]], logits, 0.6, 0.3)
    expected = order[:8][np.argsort(-scores, kind="stable")]
    assert [hit.row for hit in result.hits] == [*expected, *order[8:]]
    np.testing.assert_allclose([hit.score for hit in result.hits[:8]], -np.sort(-scores), atol=1e-5)
    assert [hit.score for hit in result.hits[8:]] == [None] * 4
    assert sorted(hit.old_place for hit in result.hits) == list(range(1, 13))
    assert result.hits[0].id == index.ids[result.hits[0].row]
    assert result.seconds.keys() == set(STAGES)


def test_every_kind_of_query_finds_the_same(made, searcher):
    path = made / "asked" / "scene1" / "5.jpg"
    picture = load_image(path)
    extracted = searcher.backbone.extract([picture])[0]
    queries = [path, str(path), picture, extracted, extracted.local]
    many = searcher.search_many([made / "asked" / "scene0" / "5.jpg", *queries], k=5)[1:]
    alone = searcher.search(path, k=5)
    for result in many:
        assert [hit.id for hit in result.hits] == [hit.id for hit in alone.hits]
        np.testing.assert_allclose([h.score for h in result.hits], [h.score for h in alone.hits], atol=1e-5)


def test_a_picture_without_descriptors_is_a_query(searcher):
    assert len(searcher.search(np.zeros((50, 50, 3), np.uint8), k=3).hits) == 3


def test_another_global_descriptor_is_refused(searcher):
    local = DescriptorSet(np.ones((3, 128), np.float32))
    with pytest.raises(UserError, match="has 7 values"):
        searcher.search(ExtractedImage(local, np.ones(7, np.float32)))


def test_reranking_for_another_first_stage(made, searcher):
    """From a packed store or an index, by id, whatever found the list."""
    path = made / "asked" / "scene3" / "5.jpg"
    result = searcher.search(path, k=8)
    first = result.first_stage
    query = searcher.backbone.extract([load_image(path)])[0].local.truncate(QUERY_DESCRIPTORS)
    index, similarities = searcher.index, [hit.global_similarity for hit in first]
    for store in (index, index.stores[0]):
        hits = rerank(index.model, query, store, [hit.id for hit in first], similarities, lam=0.6, gamma=0.3)
        assert [(hit.id, hit.old_place) for hit in hits] == [(hit.id, hit.old_place) for hit in result.hits]
    by_default = rerank(index.model, query, index, [hit.id for hit in first], similarities)
    assert [hit.score for hit in by_default] == [hit.score for hit in hits]
    assert rerank(index.model, query, index, [], [], lam=0.6, gamma=0.3) == []
    with pytest.raises(UserError, match=r"holds no image 'x.jpg' \(1 of 2"):
        rerank(index.model, query, index, [first[0].id, "x.jpg"], [1, 1], lam=0.6, gamma=0.3)
    with pytest.raises(UserError, match="2 ids with 1 global"):
        rerank(index.model, query, index, ["a", "b"], [1], lam=0.6, gamma=0.3)
    for wrong, message in ((264, "is 264.0, expected −1 to 1"), ([0.5], r"have shape \[1, 1\], expected \[1\]")):
        with pytest.raises(UserError, match=message):
            rerank(index.model, query, index, [first[0].id], [wrong], lam=0.6, gamma=0.3)
    other = photo_folder.write_model(made / "other", made / "statistics.npz", seed=1)
    with pytest.raises(UserError, match="made by another model"):
        rerank(ChosenModel.load(other, "sift").model, query, index, ["a"], [1], lam=0.6, gamma=0.3)


def test_a_store_of_an_unknown_setting_needs_lam_and_gamma(made, searcher):
    """The λ and γ of another model would rank worse without a word."""
    index, store = searcher.index, searcher.index.stores[0]
    query = searcher.backbone.extract([load_image(made / "asked" / "scene3" / "5.jpg")])[0].local
    for given in ({}, {"lam": 0.6}, {"gamma": 0.3}):
        with pytest.raises(UserError, match=r"part-00000 does not say .* give lam and gamma"):
            rerank(index.model, query, store, index.ids, np.zeros(len(index)), **given)


def test_an_approximate_first_stage_may_list_fewer(made, searcher, monkeypatch):
    exact = searcher.index.global_index.search

    def fewer(queries, k):
        similarities, rows = exact(queries, k)
        similarities[0, 5:], rows[0, 5:] = -np.inf, -1
        return similarities, rows

    whole = searcher.search(made / "asked" / "scene1" / "5.jpg", k=12)
    monkeypatch.setattr(searcher.index.global_index, "search", fewer)
    result = searcher.search(made / "asked" / "scene1" / "5.jpg", k=12)
    assert [hit.id for hit in result.first_stage] == [hit.id for hit in whole.first_stage[:5]]
    kept = {hit.id: hit.score for hit in whole.hits if hit.old_place <= 5}
    assert {hit.id: hit.score for hit in result.hits} == pytest.approx(kept)


@pytest.mark.parametrize("kinds", ["superglobal", "expand", "augment", "augment+expand+superglobal"])
def test_a_refined_first_stage_is_that_of_lists_on_disk(made, kinds):
    refined = Searcher(made / "index", shortlist=8, query_descriptors=QUERY_DESCRIPTORS, refine=kinds)
    paths = [made / "asked" / f"scene{scene}" / "5.jpg" for scene in range(2)]
    found = refined.search_many(paths, k=12)
    vectors = np.stack([image.global_descriptor for image in refined.extract(paths)])
    expected = refine(Lists.search(vectors, np.load(made / "set" / "global" / "images.npy"), 12), kinds)
    for result, ranks, similarities in zip(found, expected.ranks, expected.similarities):
        assert [hit.row for hit in result.first_stage] == ranks.tolist()
        np.testing.assert_allclose([hit.global_similarity for hit in result.first_stage], similarities, atol=1e-5)
    itself = refined.search(made / "pictures" / "scene0" / "1.jpg", k=12)
    assert "scene0/1.jpg" not in [hit.id for hit in itself.first_stage]
    assert len(itself.first_stage) == 11


def test_a_plan_scores_the_head_of_its_coarse_stage(made, searcher):
    path = made / "asked" / "scene2" / "5.jpg"
    whole = searcher.search(path, k=12)
    for plan, head in (("kernel@3,30x20", 3), ("30x20@3,10x20@5,kernel", 3)):
        result = Searcher(made / "index", shortlist=8, plan=plan).search(path, k=12)
        scored = [hit for hit in result.hits if hit.logit is not None]
        assert scored == result.hits[:head]
        known = {hit.id: hit for hit in whole.hits}
        for hit in scored:
            assert hit.old_place == known[hit.id].old_place
            assert hit.score == pytest.approx(known[hit.id].score, abs=1e-5)
        assert [hit.row for hit in result.first_stage] == [hit.row for hit in whole.first_stage]
        assert {hit.old_place for hit in result.hits[head:8]} < set(range(1, 9))
        assert [hit.old_place for hit in result.hits[8:]] == [9, 10, 11, 12]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"refine": "superglobl"}, "did you mean superglobal"),
        ({"refine": "expand+augment"}, "in the order augment"),
        ({"plan": "kernel@8,30x20"}, "does not shrink"),
        ({"plan": "30x20"}, "expected stages"),
    ],
)
def test_bad_settings_are_one_line(made, given, told):
    with pytest.raises(UserError, match=told) as caught:
        Searcher(made / "index", shortlist=8, **given)
    assert "\n" not in str(caught.value)
