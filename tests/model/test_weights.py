"""Model directories: those that version 0.2 wrote (tests/golden/models) load and score as they did then."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GOLDEN

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.released import load_model
from ames_jax.model.weights import facts_of
from ames_jax.retrieval.scorer import score_shortlist


@pytest.mark.parametrize("kind", ["ames", "elvis"])
def test_a_model_of_version_0_2_loads_and_scores_as_it_did(rng, kind):
    query = DescriptorSet(rng.standard_normal((5, 8), np.float32))
    database = DescriptorSet(rng.standard_normal((3, 4, 8), np.float32))
    path = GOLDEN / "models" / kind
    facts = facts_of(path)
    assert facts["version"] == "0.2.0"
    np.testing.assert_allclose(score_shortlist(load_model(path), query, database), facts["logits"], rtol=1e-5)
