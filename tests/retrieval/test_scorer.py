import jax
import jaxtyping
import numpy as np
import pytest
from compiled import logits
from flax import nnx

from ames_jax import DescriptorSet, Scorer, score_pairs, score_shortlist
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.retrieval import scorer
from ames_jax.retrieval.scorer import micro_batch_size
from ames_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.fixture(scope="module")
def model():
    return AMES(AMESConfig(descriptor_width=24, bits=16, model_width=32, layers=2, feed_forward=48), nnx.Rngs(0))


def random_set(rng, *shape):
    return DescriptorSet(rng.standard_normal((*shape, 24), dtype=np.float32))


def test_eight_devices_are_there():
    assert jax.local_device_count() == 8


@pytest.mark.parametrize("count", [1, 7, 21])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_pairs_and_shortlist_equal_the_model(model, rng, count, micro_batch):
    query, database = random_set(rng, 5), random_set(rng, count, 4)
    tiled = DescriptorSet(np.tile(query.features, (count, 1, 1)))
    expected = np.asarray(logits(model, tiled, database))
    scorer = Scorer(model, micro_batch)
    np.testing.assert_allclose(scorer.shortlist(query, database), expected, atol=2e-6)
    np.testing.assert_allclose(scorer.pairs(tiled, database), expected, atol=2e-6)


def test_masks_and_bits_go_through(model, rng):
    query, database = random_set(rng, 5).pad(8), random_set(rng, 3, 4).pad(6)
    plain = score_shortlist(model, random_set(np.random.default_rng(0), 5), random_set(rng, 3, 4))
    assert plain.shape == (3,)
    stored = model.tokenizer.binarize(database)
    np.testing.assert_array_equal(score_shortlist(model, query, stored), score_shortlist(model, query, database))
    unpadded = DescriptorSet(database.features[:, :4])
    np.testing.assert_allclose(
        score_shortlist(model, query, database), score_shortlist(model, query.truncate(5), unpadded), atol=2e-6
    )


def test_shortlists_gather_rows_of_a_database(model, rng):
    queries, database = random_set(rng, 2, 5), random_set(rng, 6, 4)
    lists = np.array([[5, 0, 3], [1, 1, 2]])
    scores = Scorer(model).shortlists(queries, database, lists)
    np.testing.assert_allclose(scores[0], score_shortlist(model, queries[0], database[lists[0]]), atol=2e-6)
    np.testing.assert_allclose(scores[1, 0], scores[1, 1], atol=2e-6)


def test_nothing_to_score(model, rng):
    assert score_shortlist(model, random_set(rng, 5), random_set(rng, 0, 4)).shape == (0,)
    assert score_pairs(model, random_set(rng, 0, 5), random_set(rng, 0, 4)).shape == (0,)


def test_bad_input_is_one_clear_error(model, rng):
    query, database = random_set(rng, 5), random_set(rng, 3, 4)
    with pytest.raises(UserError, match="query: the model takes descriptors of width 24, found 20"):
        score_shortlist(model, DescriptorSet(query.features[:, :20]), database)
    database.features[2, 1, 3] = np.inf
    with pytest.raises(UserError, match=r"database: descriptor \(2, 1\)"):
        score_shortlist(model, query, database)
    with pytest.raises(UserError, match="pairs need equal numbers"):
        score_pairs(model, random_set(rng, 2, 5), random_set(rng, 3, 4))


def test_scores_do_not_follow_later_changes_of_the_model(rng):
    model = AMES(AMESConfig(descriptor_width=24, model_width=32, layers=1, feed_forward=48), nnx.Rngs(0))
    query, database = random_set(rng, 5), random_set(rng, 3, 4)
    scorer = Scorer(model)
    before = scorer.shortlist(query, database)
    model.classifier.bias[...] = model.classifier.bias[...] + 1
    np.testing.assert_array_equal(scorer.shortlist(query, database), before)
    np.testing.assert_allclose(score_shortlist(model, query, database), before + 1, atol=1e-5)


def test_number_of_programs_stays_small(model, rng):
    """A program is compiled per shape."""
    shapes = set()
    for count in range(65, 129):
        batches, _ = Scorer(model, micro_batch=1)._micro_batches(random_set(rng, count, 4), count, 5, 4)
        shapes.add(batches.features.shape)
    assert len(shapes) <= 8
    before = scorer._score_shortlist._cache_size()
    for count in (9, 10):
        Scorer(model, micro_batch=1).shortlist(random_set(rng, 5), random_set(rng, count, 4))
    assert scorer._score_shortlist._cache_size() - before == 1


def test_micro_batches_on_cpu_shrink_with_the_tokens():
    assert micro_batch_size(600, 600, "cpu") == 1
    assert micro_batch_size(50, 50, "cpu") == 10
    assert micro_batch_size(50, 50, "gpu") > 1000


@pytest.mark.parametrize("count", [1, 9, 100, 400, 1000])
def test_few_of_the_scored_pairs_are_padding(model, rng, count):
    scorer = Scorer(model, micro_batch=48)
    batches, steps = scorer._micro_batches(random_set(rng, count, 4), count, 5, 4)
    scored = steps * batches.features.shape[1]
    assert count <= scored <= count * 9 / 8 + jax.local_device_count()


@pytest.mark.parametrize("model", [None, 3, "sift", np.zeros(3)])
def test_what_is_no_model_is_one_error(monkeypatch, model):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no type checker
    with pytest.raises(UserError, match="expected a model, as load_model gives it, found"):
        Scorer(model)


def test_nan_in_padding_rows_does_not_reach_the_scores(model, rng):
    query, database = random_set(rng, 5), random_set(rng, 3, 4)
    valid = np.ones((3, 4), bool)
    valid[1, 2] = False
    expected = Scorer(model).shortlist(query, DescriptorSet(database.features, valid))
    database.features[1, 2] = np.nan
    np.testing.assert_array_equal(Scorer(model).shortlist(query, DescriptorSet(database.features, valid)), expected)
