"""Search: from a picture to a re-ranked list of the index's pictures."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone, ExtractedImage
from ames_jax.extraction.sift import SiftStatistics, global_descriptor
from ames_jax.index.collection import SearchIndex
from ames_jax.index.own_pictures import SentPicture, may_be_own, own_row
from ames_jax.index.queries import as_picture, check_global, check_local, count_of
from ames_jax.index.reranking import setting_of
from ames_jax.index.shortlist_scoring import Hit, Scored, ShortlistScoring, Through, ranked
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.calibration import Calibration
from ames_jax.retrieval.plans import Plan
from ames_jax.retrieval.refinement import Search
from ames_jax.runtime.cores import refuse_fork, usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.paths import absolute

STAGES = ("extract", "global", "gather", "score", "rank")
QUERIES_AT_A_TIME = 32  # pictures and shortlists held in memory

# A picture file, a picture (`queries.as_picture`), or descriptors.
Query = str | Path | SentPicture | ExtractedImage | DescriptorSet | Any
MOST_QUERY_DESCRIPTORS = 4096  # more make the query's own attention a matter of gigabytes


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The images found for one query.

    Attributes:
      hits: the best images after re-ranking, best first; those beyond the shortlist keep the first stage's order.
      first_stage: the best images before re-ranking, best first.
      seconds: time of each of `STAGES`; of several queries searched together, the share of one.
      threshold: probability from which on an image counts as a match; None where the index is not calibrated.
      query_id: the image whose picture the query itself is, which is left out; None where it is of none.
    """

    hits: list[Hit]
    first_stage: list[Hit]
    seconds: dict[str, float]
    threshold: float | None = None
    query_id: str | None = None

    @property
    def match(self) -> bool | None:
        """True if an image among the hits shows what the query shows, as far as logits tell; None where nothing is known."""
        if self.threshold is None:
            return None
        return any(hit.probability is not None and hit.probability >= self.threshold for hit in self.hits)


class Searcher:
    """An index ready for queries: model compiled, backbone open.

    Args:
      index: folder of an index, or an open one.
      shortlist: images of the first stage that are re-ranked (default: as many as are good for the index's model).
      query_descriptors: Q, the strongest descriptors of a query, which are used (default: the index's).
      lam, gamma: λ and γ in place of those of the index.
      backbone: extracts queries; by default, opened on the first picture, the one that extracted the images.
      refine: kinds of refinement of the first stage by global descriptors alone, joined by + (`retrieval.refinement`).
      plan: stages from coarse to fine (`retrieval.plans`), which say how many descriptors are used, in place of
        `query_descriptors`. Every stage ranks with λ and γ of the last, `kernel` with a γ of its own.
      through: the most sure matches of a query through which its shortlist is looked at again (`shortlist_scoring`); 0: none.
        None: as many as are good for the index's model, none where nothing says from which logit on a match is sure.
      keep_query: a query file that is a picture of the index, by its path or content, is among its own hits, not left out.
      pictures: folder of the indexed pictures, where they have moved.

    Raises:
      UserError: no index at the path, or one that is damaged.
    """

    def __init__(
        self,
        index: SearchIndex | str | Path,
        *,
        shortlist: int | None = None,
        query_descriptors: int | None = None,
        lam: float | None = None,
        gamma: float | None = None,
        refine: str = "",
        plan: str = "",
        through: int | None = None,
        backbone: Backbone | None = None,
        keep_query: bool = False,
        pictures: str | Path | None = None,
    ):
        self.index = index if isinstance(index, SearchIndex) else SearchIndex.open(index)
        facts = self.index.facts
        shortlist = facts["shortlist"] if shortlist is None else shortlist
        query_descriptors = facts["query_descriptors"] if query_descriptors is None else query_descriptors
        self.shortlist = min(count_of(shortlist, "shortlist"), len(self.index))
        self.query_descriptors = count_of(query_descriptors, "query_descriptors", MOST_QUERY_DESCRIPTORS)
        self.lam, self.gamma = setting_of(self.index, lam, gamma)
        known = facts.get("probability")  # of the whole model's logits, which a plan has not of all
        self.calibration = None if plan else Calibration.of_facts(known, self.query_descriptors)
        self._refined = self.index.refined_stage(refine) if refine else None
        stages = Plan.parse(plan, self.shortlist) if plan else None
        if stages:
            self.query_descriptors = stages.most.query
        looking = Through.of(facts["sure_logit"], through, str(self.index.path))
        self._scoring = ShortlistScoring(self.index.model, self.packer, self.lam, self.gamma, stages, looking)
        self._backbone, self._keep_query, self._process = backbone, keep_query, os.getpid()
        self._pictures = None if pictures is None else absolute(pictures)

    def warm_up(self) -> None:
        """Opens the backbone and compiles what a query runs, so that the first one takes no longer than others."""
        self.search(np.zeros((64, 64, 3), np.uint8))
        self._scoring.warm_up(self.index.read(np.arange(self.shortlist)))

    @property
    def backbone(self) -> Backbone:
        """Extracts queries."""
        self._backbone = self._backbone or self.index.open_backbone()
        return self._backbone

    @functools.cached_property
    def packer(self) -> BitPacker:
        """Makes bits of descriptors as the index stores them."""
        return BitPacker(self.index.model)

    def search(self, query: Query, k: int = 20) -> SearchResult:
        """The k best images for one query; see `search_many`."""
        return self.search_many([query], k)[0]

    def search_many(
        self, queries: Sequence[Query], k: int = 20, progress: Callable[[int], Any] | None = None
    ) -> list[SearchResult]:
        """The k best images for each query.

        Args:
          queries: picture files, pictures as `queries.as_picture` takes them, `ExtractedImage` descriptors or, for SIFT, whose
            global descriptor comes from the local ones, a `DescriptorSet` of all local descriptors of a picture [N, 128].
          k: images per query.
          progress: called with the number of queries that were just finished.

        Raises:
          UserError: naming the file: a picture that cannot be read; descriptors of another width; k below 1.
        """
        k = count_of(k, "k")
        refuse_fork(self._process, "a Searcher")
        results = []
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            results += self._search(queries[start : start + QUERIES_AT_A_TIME], k)
            if progress:
                progress(len(results) - start)
        return results

    def extract(self, queries: Sequence[Query]) -> list[ExtractedImage]:
        """Local and global descriptors of queries."""
        with ThreadPoolExecutor(usable_cores()) as pool:
            ready = list(pool.map(self._picture_or_descriptors, queries))
        pictures = [query for query in ready if isinstance(query, np.ndarray)]
        extracted = iter(self.backbone.extract(pictures) if pictures else [])
        return [next(extracted) if isinstance(query, np.ndarray) else query for query in ready]

    def _picture_or_descriptors(self, query: Query) -> np.ndarray | ExtractedImage:
        """A picture in the size that the backbone reads (loading threads share that work), or descriptors."""
        if isinstance(query, ExtractedImage):
            return query
        if not isinstance(query, DescriptorSet):
            return self.backbone.fit(as_picture(query.pixels if isinstance(query, SentPicture) else query))
        if self.index.facts["statistics"] is None or query.is_packed:
            raise UserError(
                "a DescriptorSet of floats alone is a query of SIFT indexes, whose global descriptor comes from the local "
                "ones; else give ExtractedImage(local, global_descriptor)"
            )
        query = check_local(query, self.index.model.config)
        return ExtractedImage(query, global_descriptor(query, self._statistics))

    @functools.cached_property
    def _statistics(self) -> SiftStatistics:
        return SiftStatistics.load(self.index.path / STATISTICS_FILE)

    def _search(self, queries: Sequence[Query], k: int) -> list[SearchResult]:
        times = [time.perf_counter()]
        extracted = self.extract(queries)
        local = stack(self._checked(extracted), self.query_descriptors)
        width, name = self.index.global_index.width, str(self.index.path)
        vectors = np.stack([check_global(query, width, name) for query in extracted])
        times.append(time.perf_counter())
        similarities, rows, own = self._first_stage(queries, vectors, max(k, self.shortlist))
        times.append(time.perf_counter())
        # An approximate first stage may list fewer (row −1): scored like row 0 to keep the shape, then left out.
        shortlists = np.maximum(rows[:, : self.shortlist], 0)
        needed, places = np.unique(shortlists, return_inverse=True)
        database = self.index.read(needed)
        times.append(time.perf_counter())
        scored = self._scoring.score(local, database, places.reshape(shortlists.shape), similarities)
        times.append(time.perf_counter())
        lists = [self._ranked(*of_query) for of_query in zip(similarities, rows, scored)]
        times.append(time.perf_counter())
        seconds = dict(zip(STAGES, (np.diff(times) / len(queries)).tolist()))
        threshold = self.calibration.threshold if self.calibration else None
        names = [None if row is None else self.index.ids[row] for row in own]
        return [
            SearchResult(hits[:k], before[:k], seconds, threshold, name) for (hits, before), name in zip(lists, names)
        ]

    def _checked(self, extracted: Sequence[ExtractedImage]) -> list[DescriptorSet]:
        """Local descriptors of queries as the model takes them; bits where those of any are bits."""
        local = [check_local(query.local, self.index.model.config) for query in extracted]
        if len({query.is_packed for query in local}) > 1:
            return [self.packer.pack(query[None])[0] for query in local]
        return local

    def _first_stage(
        self, queries: Sequence[Query], vectors: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, list]:
        """Similarities and rows as `GlobalIndex.search` gives them, without the queries themselves, and the rows of these."""
        own: list[int | None] = []
        search = functools.partial(self._others, queries, own, (self._refined or self.index.global_index).search)
        return *(self._refined.lists(vectors, count, search) if self._refined else search(vectors, count)), own

    def _others(
        self, queries: Sequence[Query], own: list[int | None], search: Search, vectors: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._keep_query or not any(map(may_be_own, queries)):
            own[:] = [None] * len(queries)
            return search(vectors, count)
        similarities, rows = search(vectors, count + 1)
        if not own:  # the first search is that of the pictures themselves; a refined one may follow
            own += [own_row(self.index, query, listed, self._pictures) for query, listed in zip(queries, rows)]
        itself = rows == np.array([-1 if row is None else row for row in own])[:, None]
        similarities, rows = np.where(itself, -np.inf, similarities).astype(np.float32), np.where(itself, -1, rows)
        order = np.argsort(itself, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _ranked(self, similarities: np.ndarray, rows: np.ndarray, scored: Scored) -> tuple[list[Hit], list[Hit]]:
        """The whole list re-ranked, and as the first stage gave it."""
        there = rows[scored.columns] >= 0
        columns, logits = scored.columns[there], scored.logits[there]
        names = [self.index.ids[row] for row in rows[columns]]
        through = [None if column < 0 else self.index.ids[rows[column]] for column in scored.through[there]]
        known = {"places": columns, "calibration": self.calibration, "through": through}
        head = ranked(names, rows[columns], similarities[columns], logits, self.lam, self.gamma, **known)
        below = [*scored.rest, *range(len(there) + len(scored.rest), len(rows))]
        tail = [
            Hit(self.index.ids[rows[i]], int(rows[i]), None, float(similarities[i]), None, old_place=int(i) + 1)
            for i in below
            if rows[i] >= 0
        ]
        return head + tail, sorted(head + tail, key=lambda hit: hit.old_place)
