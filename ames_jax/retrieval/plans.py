"""Coarse to fine: a shortlist is scored cheaply first, and only the head of that order with more descriptors.

A plan is its stages with commas between: `100x50@100,600x50` scores all images with 100 query and 50 database descriptors,
and the best 100 of that order with 600 × 50. `@100` says how many images go on to the finer stage. A stage is QxT, the model
with so many descriptors, or, as the coarsest alone, `kernel`: hand-made matching of the same bits or floats. The same plan may
be written from fine to coarse: `600x50@100,100x50`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.metrics import Protocol, protocol_score
from ames_jax.retrieval.ranking import ensemble
from ames_jax.retrieval.score_keeper import ScoreKeeper, pairs_per_second
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import Measured, tune
from ames_jax.runtime.errors import UserError

KERNEL = "kernel"
FORM = "expected stages with commas between, each QxT or kernel, with @ and how many go on, e.g. 100x50@100,600x50"
Values = Callable[[Counts | None, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """Stages from coarse to fine, None for hand-made matching, and how many images go on from each but the last."""

    stages: tuple[Counts | None, ...]
    heads: tuple[int, ...]

    @classmethod
    def parse(cls, text: str, k: int) -> Plan:
        """The plan for shortlists of k images; raises UserError for another form, and for a plan that does not shrink."""
        parts = [part.strip().partition("@") for part in text.split(",")]
        stages = [_counts(name, text) for name, _, _ in parts]
        heads = [head for _, at, head in parts if at]
        if len(parts) < 2 or [bool(at) for _, at, _ in parts] != [True] * (len(parts) - 1) + [False]:
            raise UserError(f"plan={text}: {FORM}; all but the last have a number")
        if not all(map(str.isdecimal, heads)):
            raise UserError(f"plan={text}: {FORM}")
        numbers = [int(head) for head in heads]
        if _work(stages[0]) > _work(stages[-1]):
            stages, numbers = stages[::-1], numbers[::-1]
        work, images = [_work(stage) for stage in stages], [k, *numbers, 0]
        if not (_rising(work) and _rising(images[::-1])):
            raise UserError(
                f"plan={text}: does not shrink; each stage must score fewer images than the one before it, of {k}, with more "
                "descriptors"
            )
        return cls(tuple(stages), tuple(numbers))

    @property
    def most(self) -> Counts:
        """The most descriptors that any stage of the model reads."""
        return Counts(*map(max, zip(*(stage for stage in self.stages if stage))))

    def head(self, values: Values, queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The images that the last stage is to score, after all stages before it.

        values: (stage, columns int [Nq, n]) → float [Nq, n], by which these columns of the lists are ranked.

        Returns:
          columns int [Nq, n] of the lists, ascending, and the other columns [Nq, k − n], best first.
        """
        columns = np.tile(np.arange(k), (queries, 1))
        rest = columns[:, :0]
        for stage, head in zip(self.stages, self.heads):
            order = np.argsort(-values(stage, columns), axis=1, kind="stable")
            ordered = np.take_along_axis(columns, order, 1)
            columns, rest = np.sort(ordered[:, :head], axis=1), np.concatenate([ordered[:, head:], rest], axis=1)
        return columns, rest


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
    """One row per plan, after one for the model alone with `fine`: figures in percent, and what scoring costs.

    `pairs` is the share of the k images that the last stage scores; `seconds` is what the scoring of a query takes on this
    machine, from the speed of every stage. Every stage is tuned on validation. Pairs are scored once and kept, so
    that a further plan costs no scoring.
    """
    parsed = {text: Plan.parse(text, k) for text in plans}
    measured: dict[Counts | None, tuple[Measured, float]] = {}
    for counts in [fine, *(stage for plan in parsed.values() for stage in plan.stages)]:
        if counts not in measured:
            chosen, read = (kernel, fine) if counts is None else (matcher, counts)
            found = tune(keeper, chosen, validation, test, k=k, counts=read)
            measured[counts] = found, pairs_per_second(test, chosen, k, read)
    alone, speed = measured[fine]
    rows = [{"plan": f"{fine.query}x{fine.database}", "pairs": 1.0, "seconds": k / speed, **alone.figures}]
    for text, plan in parsed.items():
        stages = [measured[stage][0] for stage in plan.stages]
        figures = {
            protocol.name: protocol_score(test.judged.reordered(_order(test, protocol, stages, plan.heads)), protocol)
            for protocol in test.protocols
        }
        seconds = sum(images / measured[stage][1] for stage, images in zip(plan.stages, (k, *plan.heads)))
        rows.append({"plan": text, "pairs": plan.heads[-1] / k, "seconds": seconds, **figures})
    return rows


def _order(data: RetrievalSet, protocol: Protocol, stages: Sequence[Measured], heads: Sequence[int]) -> np.ndarray:
    """int64 [Nq, H]: the first stage's order whose heads are sorted by the finer stages' scores; junk stays last."""
    setting = stages[0].setting
    order = data.shortlist(stages[0].scores, setting.k, protocol).order(setting.lam, setting.gamma)
    for stage, head in zip(stages[1:], heads):
        best = order[:, :head]
        scores, similarity = (
            np.take_along_axis(values, best, 1) for values in (stage.scores, np.asarray(data.similarities))
        )
        missing = np.isnan(scores)
        values = ensemble(similarity, np.where(missing, 0, scores), stage.setting.lam, stage.setting.gamma)
        by_value = np.argsort(np.where(missing, np.inf, -values), axis=1, kind="stable")
        order = np.concatenate([np.take_along_axis(best, by_value, 1), order[:, head:]], axis=1)
    return order


def _counts(name: str, text: str) -> Counts | None:
    numbers = name.split("x")
    if name == KERNEL:
        return None
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise UserError(f"plan={text}: {FORM}")
    return Counts(*map(int, numbers))


def _work(stage: Counts | None) -> int:
    return 0 if stage is None else stage.query * stage.database


def _rising(values: Sequence[int]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))
