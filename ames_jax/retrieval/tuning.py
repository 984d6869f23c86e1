"""Figures of every setting from scores that are there, and the setting that validation prefers. Nothing is scored twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ames_jax.retrieval.grid import LAMBDAS, Counts, Grid
from ames_jax.retrieval.judgements import find_hits
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.metrics import Protocol, protocol_score, score_of_hits
from ames_jax.retrieval.ranking import Setting
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.scorer import in_threads
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.progress import Progress


@dataclass(frozen=True)
class SweepRow:
    """One setting and its figures, percent by protocol name."""

    setting: Setting
    figures: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean over the figures: what is tuned for."""
        return float(np.mean(list(self.figures.values())))


@dataclass(frozen=True)
class Measured:
    """A matcher with some numbers of descriptors at one setting.

    figures: percent by protocol name. order: int64 [Nq, H], the new order of the lists' heads in the main protocol.
    scores: float32 [Nq, C], those of the setting's threshold.
    """

    matcher: Matcher
    counts: Counts
    setting: Setting
    figures: dict[str, float]
    order: np.ndarray
    scores: np.ndarray

    @property
    def stored_bytes(self) -> int:
        """Bytes of local descriptors per database image."""
        return self.matcher.stored_bytes(self.counts.database)


def sweep(
    data: RetrievalSet, scores: np.ndarray, grid: Grid, thresholds: Sequence[float | str | None] = (None,)
) -> list[SweepRow]:
    """All figures of the set for every setting, in the order threshold, k, λ, γ.

    scores: float [Nq, C, F] for F thresholds, NaN where a pair has none. Raises UserError where a pair that a figure
    needs has none.
    """
    figures: dict[Setting, dict[str, float]] = {}
    # Protocols of the same images and queries, such as R@1 and R@10, share the order and the hits of a setting.
    for (ok, junk, _), alike in itertools.groupby(data.protocols, lambda one: (one.ok, one.junk, one.part)):
        protocols = list(alike)
        for setting, order in orders(data, scores, grid, thresholds, protocols[0]):
            hits = find_hits(data.judged.reordered(order), ok, junk)
            row = figures.setdefault(setting, {})
            row |= {protocol.name: score_of_hits(hits, protocol) for protocol in protocols}
    return [SweepRow(setting, row) for setting, row in figures.items()]


def orders(
    data: RetrievalSet,
    scores: np.ndarray,
    grid: Grid,
    thresholds: Sequence[float | str | None] = (None,),
    protocol: Protocol | None = None,
) -> Iterator[tuple[Setting, np.ndarray]]:
    """Every setting, in the order threshold, k, λ, γ, and the new order of the lists' heads, int64 [Nq, H].

    scores: as of `sweep`; protocol: whose junk is left out (default: the main one).
    """
    for (place, threshold), k in itertools.product(enumerate(thresholds), grid.rerank):
        shortlist = data.shortlist(scores[..., place], k, protocol)
        for lam, gamma in itertools.product(grid.lam, grid.gamma):
            yield Setting(k, lam, gamma, threshold), shortlist.order(lam, gamma)


def best_row(rows: Sequence[SweepRow]) -> SweepRow:
    """The row with the highest mean over its figures; of equal rows the first."""
    return max(rows, key=lambda row: row.mean)


def tune(
    keeper: ScoreKeeper,
    matcher: Matcher,
    validation: RetrievalSet,
    test: RetrievalSet | None = None,
    *,
    k: int,
    counts: Counts,
) -> Measured:
    """The matcher on `test` at the λ, γ and threshold that `validation` prefers; without `test`, on `validation` itself."""
    scores = keeper.scores(validation, matcher, k, counts)
    rows = sweep(validation, scores, Grid((k,), LAMBDAS, matcher.gammas), matcher.thresholds)
    return measure(keeper, matcher, test or validation, best_row(rows).setting, counts)


def tune_all(
    work: Sequence[tuple[Matcher, Counts]], validation: RetrievalSet, test: RetrievalSet, k: int
) -> list[Measured]:
    """`tune` for every matcher with its numbers of descriptors, in their order; this process alone.

    Two at a time: while a program of one is compiled, on one core, another scores.
    """
    keeper = ScoreKeeper(shared=False)

    def one(item: tuple[Matcher, Counts]) -> Measured:
        return tune(keeper, item[0], validation, test, k=k, counts=item[1])

    with Progress(f"{test.name}: every method and number of descriptors", len(work), "measurements") as progress:
        return list(progress.over(in_threads(one, work, 2, first_alone=False)))


def measure(keeper: ScoreKeeper, matcher: Matcher, data: RetrievalSet, setting: Setting, counts: Counts) -> Measured:
    """The matcher on a set at one setting."""
    scores = keeper.scores(data, matcher, setting.k, counts)[..., matcher.thresholds.index(setting.threshold)]
    orders = [data.shortlist(scores, setting.k, p).order(setting.lam, setting.gamma) for p in data.protocols]
    figures = {p.name: protocol_score(data.judged.reordered(order), p) for p, order in zip(data.protocols, orders)}
    return Measured(matcher, counts, setting, figures, orders[0], scores)
