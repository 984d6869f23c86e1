"""Coarse to fine: a shortlist is scored cheaply first, and the model with all descriptors scores only the head of that order.

A plan is COARSE@HEAD. COARSE is `kernel`, hand-made matching of the bits or floats that the model reads, or QxT, the model
with fewer descriptors. Both stages are tuned on validation, each for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.metrics import Protocol, protocol_score
from ames_jax.retrieval.ranking import Setting, ensemble
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import Measured, tune
from ames_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Plan:
    """The first stage of scoring, None for the match kernel, and how many images of it the model scores with `fine`."""

    coarse: Counts | None
    head: int
    fine: Counts

    @classmethod
    def parse(cls, text: str, fine: Counts, k: int) -> Plan:
        """From COARSE@HEAD; raises UserError for another form, and for a plan that saves nothing."""
        coarse, _, head = text.partition("@")
        numbers = coarse.split("x")
        if not head.isdecimal() or not (coarse == "kernel" or (len(numbers) == 2 and all(map(str.isdecimal, numbers)))):
            raise UserError(f"plan={text}: expected kernel@HEAD or QxT@HEAD, e.g. kernel@40 or 100x50@100")
        counts = None if coarse == "kernel" else Counts(*map(int, numbers))
        larger = counts is not None and (counts.query > fine.query or counts.database > fine.database or counts == fine)
        if not 1 <= int(head) < k or larger:
            raise UserError(
                f"plan={text}: saves nothing; the head must be smaller than the {k} images that are re-ranked, and QxT smaller "
                f"than {fine.query}x{fine.database}"
            )
        return cls(counts, int(head), fine)


def measure_plans(
    plans: Sequence[str],
    keeper: ScoreKeeper,
    matcher: Matcher,
    kernel: Matcher,
    validation: RetrievalSet,
    test: RetrievalSet,
    k: int,
    fine: Counts,
) -> list[dict[str, Any]]:
    """One row per plan, after one for the model alone: figures in percent, and the share of pairs that the model scores.

    Pairs are scored once and kept, so that a further plan costs no scoring. `pairs` is
    the share of the k images that the model scores with `fine`; all k are scored by the coarse stage.
    """
    alone = tune(keeper, matcher, validation, test, k=k, counts=fine)
    rows = [{"plan": f"{fine.query}x{fine.database}", "pairs": 1.0, **alone.figures}]
    coarse: dict[Counts | None, Measured] = {}
    for text in plans:
        plan = Plan.parse(text, fine, k)
        if plan.coarse not in coarse:
            chosen = kernel if plan.coarse is None else matcher
            coarse[plan.coarse] = tune(keeper, chosen, validation, test, k=k, counts=plan.coarse or fine)
        first = coarse[plan.coarse]
        figures = {
            protocol.name: protocol_score(
                test.judged.reordered(_order(test, protocol, first, alone, plan.head)), protocol
            )
            for protocol in test.protocols
        }
        rows.append({"plan": text, "pairs": plan.head / k, **figures})
    return rows


def _order(data: RetrievalSet, protocol: Protocol, first: Measured, fine: Measured, head: int) -> np.ndarray:
    """int64 [Nq, H]: the coarse order whose first `head` images are sorted by the fine score; junk stays last."""
    setting: Setting = first.setting
    coarse = data.shortlist(first.scores, setting.k, protocol).order(setting.lam, setting.gamma)
    best = coarse[:, :head]
    scores, similarity = (
        np.take_along_axis(values, best, 1) for values in (fine.scores, np.asarray(data.similarities))
    )
    missing = np.isnan(scores)
    values = ensemble(similarity, np.where(missing, 0, scores), fine.setting.lam, fine.setting.gamma)
    by_value = np.argsort(np.where(missing, np.inf, -values), axis=1, kind="stable")
    return np.concatenate([np.take_along_axis(best, by_value, 1), coarse[:, head:]], axis=1)
