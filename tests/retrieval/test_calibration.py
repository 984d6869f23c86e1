"""Logits as probabilities: the curve that made the labels is found again, and what cannot be fitted is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ames_jax.retrieval.calibration import Calibration, JudgedPairs
from ames_jax.runtime.errors import UserError


def test_the_curve_that_made_the_labels_is_found(rng):
    logits = rng.normal(3, 8, 20_000).astype(np.float32)
    right = rng.random(20_000) < 1 / (1 + np.exp(-(0.4 * logits - 2)))
    fitted = Calibration.fit(logits, right, 0.5, 100)
    assert (fitted.slope, fitted.offset) == pytest.approx((0.4, -2), rel=0.06)
    chances = fitted.probability(logits)
    sure = (chances > 0.7) & (chances < 0.8)
    assert right[sure].mean() == pytest.approx(0.75, abs=0.04)
    assert Calibration.of_facts(fitted.facts(), 100) == fitted
    assert Calibration.of_facts(fitted.facts(), 50) is Calibration.of_facts(None, 100) is None


def test_pairs_without_an_error_do_not_make_a_step():
    logits = np.concatenate([np.linspace(-5, -1, 200), np.linspace(1, 5, 20)]).astype(np.float32)
    chances = Calibration.fit(logits, logits > 0, 0.5, 100).probability(logits)
    assert (np.diff(chances) > 0).all()
    assert 0.9 < chances[-1] < 1 - 1e-9


def test_what_cannot_be_fitted_is_refused():
    logits = np.linspace(-5, 5, 100).astype(np.float32)
    with pytest.raises(UserError, match="9 right and 91 wrong pairs: a probability needs at least 10 of each"):
        Calibration.fit(logits, np.arange(100) >= 91, 0.5, 100)
    with pytest.raises(UserError, match="right pairs have no larger logits than wrong ones"):
        Calibration.fit(logits, logits < 0, 0.5, 100)


def test_the_report_is_of_queries_that_were_not_fitted_on():
    query = np.repeat(np.arange(20), 10)
    right = np.tile(np.arange(10) < 2, 20)
    logits = np.where(right, 9.0, -4.0).astype(np.float32) + np.tile(np.linspace(-1, 1, 10), 20).astype(np.float32)
    logits[3] = 12  # a wrong image of query 0 that looks right
    _, text = JudgedPairs(logits, right, query, np.arange(20) // 2).fit(0.5, 100)
    assert "from 200 pairs, 40 of them right" in text
    assert "20 of 20 with a right image in their shortlist get it, 1 of 20 get a wrong one" in text
