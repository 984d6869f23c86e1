"""Hand-made matching as a model: the same score in every way, kept and exported as other models are."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from compiled import run
from flax import nnx

from ames_jax.commands import convert
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.initialisation import learned_matching
from ames_jax.model.kinds import config_of
from ames_jax.model.matches import Matching, MatchingConfig
from ames_jax.model.packing import BitPacker
from ames_jax.model.released import load_model
from ames_jax.model.weights import export_scorer, save_model, weights_of
from ames_jax.retrieval.hand_made import MaxSimMatcher
from ames_jax.retrieval.scorer import Scorer
from ames_jax.runtime.errors import UserError

THRESHOLD = 0.2


@pytest.fixture(scope="module")
def model():
    return Matching(MatchingConfig(24, 16, THRESHOLD), nnx.Rngs(0))


def sides(rng, width=24):
    query = DescriptorSet(rng.standard_normal((9, width), np.float32), np.arange(9) < 8)
    return query, DescriptorSet(rng.standard_normal((3, 7, width), np.float32), rng.random((3, 7)) < 0.8)


def short_way(model, query, database):
    return model.logits(model.share_query(query), database)


@pytest.mark.parametrize("form", ["query", "mutual"])
@pytest.mark.parametrize("asking", ["bits", "floats"])
def test_every_way_gives_the_score_of_hand_made_matching(form, asking, rng):
    """A database image as the query sees it again, so that there are matches to count."""
    model = Matching(MatchingConfig(64, 64, THRESHOLD, form, asking), nnx.Rngs(0))
    query, database = sides(rng, 64)
    database.features[:] = query.features[:7] + 0.7 * database.features
    opponent = MaxSimMatcher("mutual", packer=BitPacker(model), forms=[form], queries=[asking])
    at = opponent.thresholds.index(f"{form}, query {asking} > {THRESHOLD:g}")
    expected = opponent.shortlist(query, opponent.stored(database))[:, at]
    assert (expected > 0.5).all()
    repeated = DescriptorSet(np.tile(query.features, (3, 1, 1)), np.tile(query.valid, (3, 1)))
    np.testing.assert_allclose(run(Matching.__call__, model, repeated, database).logit, expected, atol=2e-6)
    np.testing.assert_allclose(run(Matching.pair_logits, model, repeated, database), expected, atol=2e-6)
    np.testing.assert_allclose(run(short_way, model, query, database), expected, atol=2e-6)
    np.testing.assert_allclose(Scorer(model).shortlist(query, model.tokenizer.binarize(database)), expected, atol=2e-6)


def test_it_is_kept_and_exported(model, rng, tmp_path):
    save_model(model, tmp_path / "model", {"backbone": "xfeat"})
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    np.testing.assert_array_equal(weights_of(again)["tokenizer/hyperplanes"], model.tokenizer.hyperplanes[...])
    query, database = sides(rng)
    packed = model.tokenizer.binarize(database)
    exported = jax.export.deserialize(export_scorer(model, ("cpu",)).serialize())
    found = exported.call(query.features, query.valid, packed.features, packed.valid)
    np.testing.assert_allclose(found, Scorer(model).shortlist(query, packed), atol=2e-6)
    convert.convert(source=str(tmp_path / "model"), target=str(tmp_path / "copy"))
    assert "Hand-made matching" in (tmp_path / "copy" / "README.md").read_text()
    with pytest.raises(UserError, match="Hand-made matching is no model of the release"):
        convert.convert(source=str(tmp_path / "model"), target=str(tmp_path / "model.pt"))


def test_bits_are_learned_from_descriptors(rng):
    """Where all descriptors lie on one side of the origin, most random planes cut nothing off."""
    sample = rng.standard_normal((500, 16)).astype(np.float32) + np.arange(16, dtype=np.float32)
    models = learned_matching(sample, 8), Matching(MatchingConfig(16, 8), nnx.Rngs(0))
    ones = [(np.asarray(model.tokenizer.projections(sample)) > 0).mean(0) for model in models]
    learned, random = (np.minimum(share, 1 - share).mean() for share in ones)
    assert learned > 2 * random


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 12}, "whole number of bytes"),
        ({"form": "both"}, "query, mutual"),
        ({"query": "float"}, "bits, floats"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        config_of({"kind": "matching", **fields})
