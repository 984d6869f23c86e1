"""Scores of queries and their shortlists, by a plan from coarse to fine and again through the matches that are sure; and hits.

Three photographs of a place often do not all match each other: one from the left and one from the right may match only the one
from the front. So the best of a query's sure matches ask for the shortlist in the query's place, by what is stored of them. An
image is then as good as the weakest link of the best such chain, or as itself. Query expansion by verified images (Chum et al.,
ICCV 2007) joins their descriptors for that; here nothing is stored, and any matcher of stored bits will do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ames_jax.descriptors import DescriptorSet
from ames_jax.index.queries import count_of
from ames_jax.model.kinds import Model
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.calibration import Calibration
from ames_jax.retrieval.grid import KERNEL_THRESHOLDS, Counts
from ames_jax.retrieval.hand_made import MaxSimMatcher
from ames_jax.retrieval.plans import Plan
from ames_jax.retrieval.ranking import ensemble
from ames_jax.retrieval.scorer import Scorer
from ames_jax.runtime.errors import UserError

# Of `kernel` in a plan; an index has no validation of its own. Chosen on that of the embedded landmarks with the students of
# three seeds: of the right images among 200, the 30 that go on hold 83 %.
KERNEL_THRESHOLD, KERNEL_GAMMA = 0.5, 1.0
# Measured on photographs (docs/photographs.md): sure matches that are asked, and what a chain's weakest link counts for.
THROUGH, SHARE = 5, 0.6


@dataclass(frozen=True)
class Hit:
    """One image of a ranking.

    Attributes:
      id: of the image; row: its row in the store or index.
      score: λ · global_similarity + (1 − λ) · sigmoid(γ · logit); None below the shortlist, which has no logit.
      global_similarity: of the first stage; logit: of the model.
      old_place: place in the first stage's ranking, counted from 1.
      probability: that it shows what the query shows; None below the shortlist, and where the index is not calibrated.
      through: id of the sure match that its logit comes through; None where it is the query's own.
    """

    id: str
    row: int
    score: float | None
    global_similarity: float
    logit: float | None
    old_place: int
    probability: float | None = None
    through: str | None = None


@dataclass(frozen=True)
class Through:
    """Sure matches through which a shortlist is looked at: `images` of them at most, sure from `logit` on."""

    images: int
    logit: float

    @classmethod
    def of(cls, sure_logit: float | None, images: int | None, name: str) -> Through | None:
        """For so many images, None for the default; None where there is nothing to do.

        Raises UserError, naming the index, where images are asked for and nothing says from which logit on a match is sure.
        """
        if sure_logit is None and images:
            raise UserError(
                f"through={images}: {name} does not say from which logit on a match is sure; leave it out, or index with "
                "--model=mutual"
            )
        images = THROUGH if images is None else count_of(images, "through", least=0)
        return cls(images, sure_logit) if images and sure_logit is not None else None


class Scored(NamedTuple):
    """Of one query: columns int [n] of its shortlist that were scored, their logits [n], for each the column of the sure
    match that its logit comes through or −1, and the other columns, best first."""

    columns: np.ndarray
    logits: np.ndarray
    through: np.ndarray
    rest: np.ndarray


class ShortlistScoring:
    """A binary model ready to score shortlists.

    Args:
      packer: of the model.
      lam, gamma: λ and γ by which stages of a plan are ranked, and sure matches chosen.
      plan: stages from coarse to fine; None: the model alone.
      through: of the images that the model has scored at last; None: they are not looked at again.
    """

    def __init__(
        self, model: Model, packer: BitPacker, lam: float, gamma: float, plan: Plan | None, through: Through | None
    ):
        self._scorer, self._packer = Scorer(model), packer
        self._lam, self._gamma = lam, gamma
        self._plan, self._through = plan, through

    def score(
        self,
        local: DescriptorSet,
        database: DescriptorSet,
        places: Int[np.ndarray, "Nq S"],
        similarities: Float[np.ndarray, "Nq _"],
    ) -> list[Scored]:
        """Of every query [Nq, Q, ·]; places are rows of `database` [N, T, ·].

        similarities: of the first stage, at least S; −∞ where an approximate one lists fewer images.
        """
        known = np.asarray(similarities)[:, : places.shape[1]]
        columns, logits, rest = self._staged(local, database, places, known)
        through = np.full(logits.shape, -1)
        if self._through:
            listed, at = (np.take_along_axis(values, columns, axis=1) for values in (places, known))
            logits, through = self._chained(self._through, database, listed, at, logits)
            through = np.where(through < 0, -1, np.take_along_axis(columns, through, axis=1))
        return [Scored(*of_query) for of_query in zip(columns, logits, through, rest)]

    def warm_up(self, database: DescriptorSet) -> None:
        """Compiles what a query with sure matches runs; database: as many images [S, T, ·] as a shortlist has."""
        if self._through:
            self._scorer.shortlist(database[0], database)

    def _staged(
        self, local: DescriptorSet, database: DescriptorSet, places: np.ndarray, similarities: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns int [Nq, n] that the model scores, its logits [Nq, n], and the other columns, best first."""
        count = places.shape[1]
        if self._plan is None:
            columns = np.tile(np.arange(count), (len(places), 1))
            return columns, self._scorer.shortlists(local, database, places), columns[:, count:]
        known = np.maximum(similarities, -1)

        def score(stage: Counts | None, columns: np.ndarray) -> np.ndarray:
            lists = np.take_along_axis(places, columns, axis=1)
            if stage is not None:
                sides = local.truncate(stage.query), database.truncate(stage.database)
                return self._scorer.shortlists(*sides, lists)
            kernel, threshold = self._kernel
            scores = [kernel.shortlist(local[query], database[rows])[:, threshold] for query, rows in enumerate(lists)]
            return np.stack(scores)

        def values(stage: Counts | None, columns: np.ndarray) -> np.ndarray:
            gamma = KERNEL_GAMMA if stage is None else self._gamma
            return ensemble(np.take_along_axis(known, columns, axis=1), score(stage, columns), self._lam, gamma)

        columns, rest = self._plan.head(values, len(places), count)
        return columns, score(self._plan.stages[-1], columns), rest

    @functools.cached_property
    def _kernel(self) -> tuple[MaxSimMatcher, int]:
        """Hand-made matching for the coarsest stage of a plan, and which of its scores counts."""
        kernel = MaxSimMatcher("kernel", packer=self._packer, forms=("query",), queries=("floats",))
        return kernel, KERNEL_THRESHOLDS.index(KERNEL_THRESHOLD)

    def _chained(
        self,
        through: Through,
        database: DescriptorSet,
        places: np.ndarray,
        similarities: np.ndarray,
        logits: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [Nq, n], raised where a chain is better, and the columns [Nq, n] that they come through, else −1."""
        there = np.isfinite(similarities)
        values = ensemble(np.where(there, similarities, 0), logits, self._lam, self._gamma)
        best = np.argsort(-np.where(there, values, -np.inf), axis=1, kind="stable")[:, : through.images]
        sure = np.take_along_axis(there & (logits >= through.logit), best, axis=1)
        queries, columns = np.nonzero(sure)[0], best[sure]
        links = self._scorer.shortlists(database[places[queries, columns]], database, places[queries])
        raised, came = logits.copy(), np.full(logits.shape, -1)
        for query, column, link in zip(queries, columns, links):
            chain = np.float32(SHARE) * np.minimum(logits[query, column], link)
            better = chain > raised[query]
            better[column] = False
            raised[query, better], came[query, better] = chain[better], column
        return raised, came


def ranked(
    ids: Sequence[str],
    rows: Int[np.ndarray, " K"],
    similarities: Float[np.ndarray, " K"],
    logits: Float[np.ndarray, " K"],
    lam: float,
    gamma: float,
    places: Int[np.ndarray, " K"] | None = None,
    calibration: Calibration | None = None,
    through: Sequence[str | None] | None = None,
) -> list[Hit]:
    """Hits by falling score; equal ones in the order of the first stage. places: in it, from 0 (default: as they stand)."""
    scores = ensemble(similarities, logits, lam, gamma)
    places = np.arange(len(ids)) if places is None else places
    chances = calibration.probability(logits).tolist() if calibration else [None] * len(logits)
    numbers = [values.tolist() for values in (rows, scores, similarities, logits, places + 1)]
    hits = [Hit(*values) for values in zip(ids, *numbers, chances, through or [None] * len(logits))]
    return [hits[place] for place in np.argsort(-scores, kind="stable")]
