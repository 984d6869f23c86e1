"""Logits as probabilities: a logistic curve with two parameters, fitted on pairs whose truth is known.

Platt, Probabilistic outputs for support vector machines (1999): targets are smoothed, so that pairs which a logit separates
without error do not make the curve a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit

from ames_jax.runtime.errors import UserError

LEAST_PAIRS = 10  # of each kind: on fewer, any curve fits


@dataclass(frozen=True)
class Calibration:
    """The curve 1 / (1 + exp(−(slope · logit + offset))), which holds for queries of `query_descriptors` descriptors.

    threshold: probability from which on an image counts as a match.
    """

    slope: float
    offset: float
    threshold: float
    query_descriptors: int

    @classmethod
    def fit(
        cls, logits: Float[np.ndarray, " P"], right: Bool[np.ndarray, " P"], threshold: float, query_descriptors: int
    ) -> Calibration:
        """The curve of largest likelihood; raises UserError for too few pairs, or logits that do not tell right from wrong."""
        counts = int(right.sum()), int((~right).sum())
        if min(counts) < LEAST_PAIRS:
            raise UserError(
                f"{counts[0]} right and {counts[1]} wrong pairs: a probability needs at least {LEAST_PAIRS} of each; label "
                "more pictures, several per label"
            )
        centre, scale = float(logits.mean()), float(logits.std()) or 1.0
        steps = (logits.astype(np.float64) - centre) / scale
        targets = np.where(right, (counts[0] + 1) / (counts[0] + 2), 1 / (counts[1] + 2))

        def loss(curve: np.ndarray) -> float:
            values = curve[0] * steps + curve[1]
            return float((np.logaddexp(0, values) - targets * values).mean())

        slope, offset = minimize(loss, np.array([1.0, np.log((counts[0] + 1) / (counts[1] + 1))]), method="BFGS").x
        if not slope > 0:
            raise UserError(
                "right pairs have no larger logits than wrong ones: the labels or the model are not of these pictures"
            )
        return cls(float(slope / scale), float(offset - slope * centre / scale), threshold, query_descriptors)

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any] | None, query_descriptors: int) -> Calibration | None:
        """As a model or an index keeps it; None where it has none, or one for another number of query descriptors."""
        if facts is None or facts["query_descriptors"] != query_descriptors:
            return None
        return cls(**facts)

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def probability(self, logits: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The probability that the two images of a pair show the same."""
        return expit(self.slope * logits.astype(np.float64) + self.offset)


@dataclass(frozen=True)
class JudgedPairs:
    """Logits of pairs, whether they show the same, and the query of each, all [P]; `group` [Nq]: what each query shows."""

    logits: Float[np.ndarray, " P"]
    right: Bool[np.ndarray, " P"]
    query: Int[np.ndarray, " P"]
    group: Int[np.ndarray, " Nq"]

    @classmethod
    def of_lists(cls, logits: Float[np.ndarray, "Nq C"], listed: np.ndarray, shown: np.ndarray) -> JudgedPairs:
        """Pairs of queries and their lists; listed: str [Nq, ≥ C], what each listed image shows; shown: str [Nq], queries."""
        query, column = np.nonzero(np.isfinite(logits))
        right = (listed[:, : logits.shape[1]] == shown[:, None])[query, column]
        return cls(logits[query, column].astype(np.float32), right, query, np.unique(shown, return_inverse=True)[1])

    def fit(self, threshold: float, query_descriptors: int) -> tuple[Calibration, str]:
        """The curve of all pairs, and a line on how curves of one half of what is shown do on the other half."""
        fitted = Calibration.fit(self.logits, self.right, threshold, query_descriptors)
        found, wrong, asked, queries = 0, 0, 0, 0
        for half in (0, 1):
            inside = self.group[self.query] % 2 == half
            other = Calibration.fit(self.logits[~inside], self.right[~inside], threshold, query_descriptors)
            match = other.probability(self.logits[inside]) >= threshold
            right, query = self.right[inside], self.query[inside]
            asked += len(np.unique(query[right]))
            queries += len(np.unique(query))
            found += len(np.unique(query[right & match]))
            wrong += len(np.unique(query[~right & match]))
        text = (
            f"probability = 1 / (1 + exp(-({fitted.slope:.4g} · logit {fitted.offset:+.4g}))), from {len(self.logits):,} "
            f"pairs, {int(self.right.sum()):,} of them right.\nMatches (probability {threshold:g} or more) of queries that a "
            f"curve was not fitted on: {found} of {asked} with a right image in their shortlist get it, {wrong} of {queries} "
            "get a wrong one"
        )
        return fitted, text
