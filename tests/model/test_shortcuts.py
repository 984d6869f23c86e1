"""The short ways to a score against the plain layers."""

import numpy as np
import pytest
from compiled import logits, run
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def shortlist_logits(model, query, database):
    return model.logits(model.share_query(query), database)


@pytest.mark.parametrize(("layers", "pre_norm"), [(1, True), (3, False), (3, True)])
@pytest.mark.parametrize(
    "matches",
    [
        {},
        {"bits": 16, "match_weight": 0.5, "match_threshold": 0.1},
        {"bits": 16, "match_weight": 0.5, "match_threshold": 0.1, "match_form": "mutual", "match_query": "floats"},
        {"match_form": "mutual", "match_weight": 0.5, "match_learned": True},
    ],
)
def test_plain_and_short_are_equal(pre_norm, layers, matches, rng):
    """One query against its shortlist, with padding on both sides, in all three ways."""
    shape = {"descriptor_width": 24, "model_width": 32, "heads": 4, "feed_forward": 48}
    model = AMES(AMESConfig(**shape, layers=layers, pre_norm=pre_norm, **matches), nnx.Rngs(1))
    query = DescriptorSet(rng.standard_normal((5, 24), np.float32), np.arange(5) < 4)
    database = DescriptorSet(rng.standard_normal((3, 4, 24), np.float32), rng.random((3, 4)) < 0.7)
    repeated = DescriptorSet(np.tile(query.features, (3, 1, 1)), np.tile(query.valid, (3, 1)))
    plain = logits(model, repeated, database)
    np.testing.assert_allclose(run(AMES.pair_logits, model, repeated, database), plain, atol=2e-6)
    np.testing.assert_allclose(run(shortlist_logits, model, query, database), plain, atol=2e-6)
