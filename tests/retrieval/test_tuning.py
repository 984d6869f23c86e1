"""One opponent and one grid everywhere; a matcher of one's own is tuned as every other."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic
from flax import nnx
from ml_collections import ConfigDict

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import save_model
from ames_jax.report.methods import baseline_matcher
from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.report.run_report import matchers
from ames_jax.retrieval.grid import KERNEL_THRESHOLDS, Counts
from ames_jax.retrieval.hand_made import MaxSimMatcher, Whitening
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import tune, tune_all
from ames_jax.runtime.command_line import load_config
from ames_jax.training.run import make_validation

SHAPE = {"descriptor_width": synthetic.WIDTH, "model_width": 16, "heads": 2, "layers": 1, "feed_forward": 16}
COUNTS = {"query_descriptors": 6, "database_descriptors": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def model() -> AMES:
    return AMES(AMESConfig(**SHAPE), nnx.Rngs(0))


def test_the_opponent_on_floats_is_the_same_in_report_and_evaluation(root):
    student = AMES(AMESConfig(**SHAPE, bits=16), nnx.Rngs(0))
    validation = RetrievalSet.load(root, "validation")
    in_report = next(m for m in matchers(None, student, validation) if m.kind == "kernel on floats")
    evaluated = baseline_matcher(None, validation)
    assert evaluated.facts == in_report.facts
    assert evaluated.name == "hand-made, floats"
    (root / "images" / "train.ids.txt").rename(root / "hidden")
    try:
        without = RetrievalSet.load(root, "validation")
    finally:
        (root / "hidden").rename(root / "images" / "train.ids.txt")
    of_database = baseline_matcher(None, without)
    assert of_database.name == "hand-made, floats, whitened on the database"
    assert of_database.facts != in_report.facts


def test_training_and_evaluation_choose_the_same_setting(root, model, tmp_path):
    counts = {"queries": None, "shortlist": 20, **COUNTS}
    found = make_validation(ConfigDict({"validation": counts}), root)(model)
    config = load_config("evaluate")
    config.update(data_dir=str(root), dataset="test", tune_on="validation", rerank="20", **COUNTS)
    config.model = str(save_model(model, tmp_path / "model"))
    tuned = evaluate(config, tmp_path / "run")["tuned_on"]
    assert tuned["chosen"] == {"lam": found["lam"], "gamma": found["gamma"]}
    assert max(row["mAP"] for row in tuned["rows"]) == found["map"]


def test_all_thresholds_are_scored_in_one_pass(root, monkeypatch):
    calls = []
    original = MaxSimMatcher.similarities
    monkeypatch.setattr(MaxSimMatcher, "similarities", lambda *given: calls.append(1) or original(*given))
    data = RetrievalSet.load(root, "test")
    matcher = MaxSimMatcher("hand-made", whitening=Whitening.of_images(data.training))
    scores = ScoreKeeper().scores(data, matcher, 10, Counts(6, 4))
    assert scores.shape == (len(data.ranks), 10, 3 * len(KERNEL_THRESHOLDS))
    assert len(calls) == len(data.ranks)


class Nearest(Matcher):
    """A matcher of one's own: the largest product of two descriptors."""

    name, facts = "nearest", {"matcher": "nearest"}

    def stored_bytes(self, count: int) -> int:
        return 2 * synthetic.WIDTH * count

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        return np.einsum("qd,ktd->kqt", query.features, database.features).max(axis=(1, 2))


def test_a_matcher_of_ones_own_is_tuned_as_all_are(root):
    validation, test = (RetrievalSet.load(root, name) for name in ("validation", "test"))
    found = tune(ScoreKeeper(), Nearest(), validation, test, k=20, counts=Counts(6, 4))
    assert found.figures["mAP"] >= test.figures()["mAP"] - 5
    assert found.stored_bytes == 4 * 2 * synthetic.WIDTH
    again, other = tune_all(
        [(Nearest(), Counts(6, 4)), (Nearest(), Counts(6, 2))], validation, test.in_memory(6, 4), 20
    )
    assert again.figures == found.figures
    assert other.counts.database == 2
