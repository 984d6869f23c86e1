"""What holds for every matcher: scores depend on the pair alone, and irrelevant images never help."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.elvis import ELViS, ELViSConfig
from ames_jax.model.matches import Matching, MatchingConfig
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.hand_made import MaxSimMatcher, RansacMatcher, Whitening
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.matchers import Matcher, ModelMatcher
from ames_jax.retrieval.metrics import Protocol, protocol_score
from ames_jax.retrieval.ranking import Shortlist

WIDTH, BITS, IMAGES, STORED, MORE = 12, 32, 9, 12, 5
AMES_SHAPE = {"descriptor_width": WIDTH, "model_width": 16, "heads": 2, "layers": 1, "feed_forward": 16}
NAMES = (
    *("AMES", "AMES, bits", "ELViS", "ELViS, bits", "matching, mutual", "matching, query"),
    *("query", "both", "mutual", "floats", "ransac", "ransac, floats"),
)


def make(name: str) -> Matcher:
    binary = AMES(AMESConfig(**AMES_SHAPE, bits=BITS), nnx.Rngs(0))
    elvis = {"descriptor_width": WIDTH, "model_width": 16, "vote_width": 4, "head_width": 4, "round_stored": True}
    models = {"AMES": lambda: AMES(AMESConfig(**AMES_SHAPE), nnx.Rngs(0)), "AMES, bits": lambda: binary}
    models |= {
        "ELViS": lambda: ELViS(ELViSConfig(**elvis), nnx.Rngs(0)),
        "ELViS, bits": lambda: ELViS(ELViSConfig(**elvis, bits=BITS), nnx.Rngs(0)),
    }
    for form in ("mutual", "query"):
        config = MatchingConfig(WIDTH, bits=BITS, threshold=0.1, form=form)
        models[f"matching, {form}"] = lambda config=config: Matching(config, nnx.Rngs(0))
    if name in models:
        return ModelMatcher(models[name](), name)
    whitening = Whitening.fit(np.random.default_rng(1).standard_normal((300, WIDTH)))
    read = {"whitening": whitening} if name.endswith("floats") else {"packer": BitPacker(binary)}
    if name.startswith("ransac"):
        return RansacMatcher(name, **read)
    return MaxSimMatcher(name, forms=("both",) if name == "floats" else (name,), **read)


@pytest.fixture(scope="module", params=NAMES)
def matcher(request: pytest.FixtureRequest) -> Matcher:
    return make(request.param)


def pair_of_sets(seed: int) -> tuple[DescriptorSet, DescriptorSet]:
    """A query and database images; the first ones show some of its descriptors, turned and moved."""
    rng = np.random.default_rng(seed)
    query = DescriptorSet(
        rng.standard_normal((10, WIDTH), np.float32), rng.random(10) < 0.9, rng.random((10, 2), np.float32)
    )
    features = rng.standard_normal((IMAGES, STORED, WIDTH), np.float32)
    xy = rng.random((IMAGES, STORED, 2), np.float32)
    shown = rng.permuted(np.tile(np.arange(10), (4, 1)), axis=1)[:, :8]
    features[:4, :8] = query.features[shown] + 0.2 * rng.standard_normal((4, 8, WIDTH), np.float32)
    xy[:4, :8] = 0.2 + 0.6 * query.xy[shown]
    return query, DescriptorSet(features, rng.random((IMAGES, STORED)) < 0.9, xy)


def scores(matcher: Matcher, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
    found = matcher.shortlist(query, matcher.stored(database))
    return found.reshape(len(found), -1)


@pytest.mark.parametrize("seed", range(3))
def test_scores_depend_on_the_pair_alone(matcher: Matcher, seed: int) -> None:
    """Not on padding, the order of descriptors, or the images that are scored together."""
    query, database = pair_of_sets(seed)
    rng = np.random.default_rng(seed)
    expected = scores(matcher, query, database)
    of_query, of_database, images = rng.permutation(10), rng.permutation(STORED), rng.permutation(IMAGES)[:5]
    turned = jax.tree.map(lambda field: field[of_query], query)
    other = jax.tree.map(lambda field: field[images][:, of_database], database)
    found = scores(matcher, turned.pad(13), other.pad(15))
    np.testing.assert_allclose(found, expected[images], atol=2e-5)


def test_one_device_gives_the_scores_of_many(matcher: Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    query, database = pair_of_sets(0)
    expected = scores(matcher, query, database)
    assert jax.local_device_count() == 8
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    np.testing.assert_allclose(scores(make(matcher.name), query, database), expected, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), lam=st.sampled_from([0.0, 0.3, 0.7]))
def test_irrelevant_images_never_raise_map(matcher: Matcher, seed: int, lam: float) -> None:
    """All of a list is re-ranked; images without a right answer are added at places of their similarity."""
    rng = np.random.default_rng(seed)
    query, database = pair_of_sets(0)
    _, others = pair_of_sets(1)
    together = jax.tree.map(lambda *sides: np.concatenate(sides), database, others[IMAGES - MORE :])
    column = rng.integers(scores(matcher, query, database).shape[1])
    values, similarity = scores(matcher, query, together)[:, column], rng.random(IMAGES + MORE)
    right = rng.choice(IMAGES, 3, replace=False)

    def figure(images: int) -> float:
        ranks = np.argsort(-similarity[:images], kind="stable")[None]
        cut = Shortlist.cut(similarity[ranks[0]][None], values[ranks[0]][None], images)
        judged = judge(ranks, [{"ok": right.tolist()}]).reordered(cut.order(lam, matcher.gammas[1]))
        return protocol_score(judged, Protocol("mAP"))

    assert figure(IMAGES + MORE) <= figure(IMAGES) + 1e-9


def test_matches_that_move_together_are_counted() -> None:
    query, database = pair_of_sets(0)
    query, database = (dataclasses.replace(side, valid=None) for side in (query, database))
    for bits in (8, 16):
        matcher = RansacMatcher("ransac", packer=make("mutual").packer, position_bits=bits)
        assert matcher.stored_bytes(64) == 64 * (BITS // 8 + bits // 4)
        found = scores(matcher, query, database)
        column = matcher.thresholds.index("similarity, matches > 0.5, within 0.01")
        assert found[:4, column].min() >= 4
        assert found[4:, column].max() <= 1
