"""Search: from a picture to a re-ranked list of the index's pictures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone, ExtractedImage
from ames_jax.extraction.images import load_image
from ames_jax.extraction.sift import SiftStatistics, global_descriptor
from ames_jax.index.collection import SearchIndex
from ames_jax.index.reranking import Hit, ranked, setting_of
from ames_jax.retrieval.scoring import Scorer
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError

STAGES = ("extract", "global", "gather", "score", "rank")
QUERIES_AT_A_TIME = 32  # pictures and shortlists held in memory

Query = str | Path | np.ndarray | ExtractedImage | DescriptorSet


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The images found for one query.

    Attributes:
      hits: the best images after re-ranking, best first; those beyond the shortlist keep the first stage's order.
      first_stage: the best images before re-ranking, best first.
      seconds: time of each of `STAGES`; of several queries searched together, the share of one.
    """

    hits: list[Hit]
    first_stage: list[Hit]
    seconds: dict[str, float]


class Searcher:
    """An index ready for queries: model compiled, backbone open.

    Args:
      index: folder of an index, or an open one.
      shortlist: images of the first stage that are re-ranked.
      query_descriptors: Q, the strongest descriptors of a query, which are used.
      lam, gamma: λ and γ in place of those of the index.
      backbone: extracts queries; by default, opened on the first picture, the one that extracted the images.

    Raises:
      UserError: no index at the path, or one that is damaged.
    """

    def __init__(
        self,
        index: SearchIndex | str | Path,
        *,
        shortlist: int = 100,
        query_descriptors: int = 100,
        lam: float | None = None,
        gamma: float | None = None,
        backbone: Backbone | None = None,
    ):
        self.index = index if isinstance(index, SearchIndex) else SearchIndex.open(index)
        for name, value in (("shortlist", shortlist), ("query_descriptors", query_descriptors)):
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        self.shortlist, self.query_descriptors = min(shortlist, len(self.index)), query_descriptors
        self.lam, self.gamma = setting_of(self.index, lam, gamma)
        self._scorer = Scorer(self.index.model)
        self._backbone, self._statistics = backbone, None

    def warm_up(self) -> None:
        """Opens the backbone and compiles what a query runs, so that the first one takes no longer than others."""
        self.backbone.extract([np.zeros((64, 64, 3), np.uint8)])
        width = self.index.model.config.descriptor_width
        nothing = stack([_bare(DescriptorSet(np.zeros((0, width), np.float32)))], self.query_descriptors)
        self._scorer.shortlists(nothing, *self._gather(np.zeros((1, self.shortlist), np.int64)))
        self.index.ids  # noqa: B018 - read once, kept

    @property
    def backbone(self) -> Backbone:
        """Extracts queries."""
        self._backbone = self._backbone or self.index.open_backbone()
        return self._backbone

    def search(self, query: Query, k: int = 20) -> SearchResult:
        """The k best images for one query; see `search_many`."""
        return self.search_many([query], k)[0]

    def search_many(
        self, queries: Sequence[Query], k: int = 20, progress: Callable[[int], Any] | None = None
    ) -> list[SearchResult]:
        """The k best images for each query.

        Args:
          queries: picture files, RGB images uint8 [H, W, 3], `ExtractedImage` descriptors or, for SIFT, whose global descriptor
            comes from the local ones, a `DescriptorSet` of all local descriptors of a picture [N, 128].
          k: images per query.
          progress: called with the number of queries that were just finished.

        Raises:
          UserError: naming the file: a picture that cannot be read; descriptors of another width.
        """
        results = []
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            found = self._search(queries[start : start + QUERIES_AT_A_TIME], k)
            results += found
            if progress:
                progress(len(found))
        return results

    def extract(self, queries: Sequence[Query]) -> list[ExtractedImage]:
        """Local and global descriptors of queries."""
        places = [i for i, query in enumerate(queries) if not _is_extracted(query)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            pictures = list(pool.map(self._image, (queries[i] for i in places)))
        extracted = dict(zip(places, self.backbone.extract(pictures) if places else []))
        return [extracted[i] if i in extracted else self._given(query) for i, query in enumerate(queries)]

    def _search(self, queries: Sequence[Query], k: int) -> list[SearchResult]:
        clock = _Clock(len(queries))
        extracted = self.extract(queries)
        local = stack([_bare(query.local) for query in extracted], self.query_descriptors)
        clock.lap("extract")
        vectors = np.stack([query.global_descriptor for query in extracted])
        self._check_width(vectors)
        similarities, rows = self.index.global_index.search(vectors, max(k, self.shortlist))
        clock.lap("global")
        # An approximate first stage may list fewer (row −1): scored like row 0 to keep the shape, then left out.
        database = self._gather(np.maximum(rows[:, : self.shortlist], 0))
        clock.lap("gather")
        logits = self._scorer.shortlists(local, *database)
        clock.lap("score")
        found = [self._ranked(s[r >= 0], r[r >= 0], x[r[: len(x)] >= 0]) for s, r, x in zip(similarities, rows, logits)]
        clock.lap("rank")
        return [SearchResult(hits[:k], before[:k], clock.seconds) for hits, before in found]

    def _image(self, query: Query) -> np.ndarray:
        """The picture in the size that the backbone reads: loading threads share that work."""
        return self.backbone.fit(query if isinstance(query, np.ndarray) else load_image(Path(query)))

    def _given(self, query: ExtractedImage | DescriptorSet) -> ExtractedImage:
        if isinstance(query, ExtractedImage):
            return query
        if self.index.facts["statistics"] is None:
            raise UserError(
                "a DescriptorSet alone is a query of SIFT indexes, whose global descriptor comes from the local ones; "
                "give ExtractedImage(local, global_descriptor)"
            )
        self._statistics = self._statistics or SiftStatistics.load(self.index.path / STATISTICS_FILE)
        return ExtractedImage(query, global_descriptor(query, self._statistics))

    def _check_width(self, vectors: np.ndarray) -> None:
        if vectors.shape[1] != self.index.global_index.width:
            raise UserError(
                f"the query's global descriptor has {vectors.shape[1]} values, those of {self.index.path} "
                f"{self.index.global_index.width}: it comes from another extraction"
            )

    def _gather(self, rows: np.ndarray) -> tuple[DescriptorSet, np.ndarray]:
        """The stored images that shortlists [Nq, K] name, each once, and the shortlists as rows of them."""
        needed, places = np.unique(rows, return_inverse=True)
        return self.index.read(needed), places.reshape(rows.shape)

    def _ranked(self, similarities: np.ndarray, rows: np.ndarray, logits: np.ndarray) -> tuple[list[Hit], list[Hit]]:
        """The whole list re-ranked, and as the first stage gave it."""
        ids, count = [self.index.ids[row] for row in rows], len(logits)
        head = ranked(ids[:count], rows[:count], similarities[:count], logits, self.lam, self.gamma)
        tail = [
            Hit(name, int(row), None, float(similarity), None, count + place)
            for place, (name, row, similarity) in enumerate(zip(ids[count:], rows[count:], similarities[count:]), 1)
        ]
        return head + tail, sorted(head, key=lambda hit: hit.old_place) + tail


class _Clock:
    """Seconds between laps, divided by the number of queries."""

    def __init__(self, queries: int):
        self.seconds: dict[str, float] = {}
        self._queries, self._last = queries, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = (now - self._last) / self._queries
        self._last = now


def _is_extracted(query: Query) -> bool:
    return isinstance(query, ExtractedImage | DescriptorSet)


def _bare(descriptors: DescriptorSet) -> DescriptorSet:
    """Features, and `valid` always, so that queries with and without padding run one program."""
    valid = np.ones(descriptors.count, bool) if descriptors.valid is None else descriptors.valid
    return DescriptorSet(np.asarray(descriptors.features), valid)
