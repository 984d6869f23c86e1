"""The first stage of an index, refined on its global descriptors alone, as `retrieval.refinement` does for lists on disk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ames_jax.data.neighbour_search import nearest
from ames_jax.index.collection import SearchIndex
from ames_jax.index.first_stage import GlobalIndex
from ames_jax.retrieval.refinement import (
    ALPHA,
    KINDS,
    NEIGHBOURS,
    SHORTLIST,
    augment_database,
    check_kinds,
    expand_queries,
    superglobal_lists,
)
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress

# Vectors [Nq, G] and a count → similarities and rows [Nq, k], −∞ and −1 where there are fewer; see `GlobalIndex.search`.
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class RefinedStage:
    """Searches an index with `KINDS` of refinement joined by "+", in their order.

    augment holds all global descriptors in memory, each joined with its neighbours, and searches them exactly; this is
    done once, on opening.

    Raises UserError for other kinds, another order, or an index whose global descriptors are in a database.
    """

    def __init__(self, index: SearchIndex, kinds: str):
        check_kinds(kinds)
        self._kinds = kinds.split("+")
        if self._kinds != [kind for kind in KINDS if kind in self._kinds]:
            raise UserError(f"refine={kinds}: a search refines in the order {'+'.join(KINDS)}, each once")
        if not isinstance(index.global_index, GlobalIndex):
            raise UserError(
                f"refine={kinds} reads the global descriptors of the index, and those of {index.path} are in a database: leave "
                "--refine or --database out"
            )
        self._vectors: GlobalIndex | np.ndarray = index.global_index
        self.search: Search = index.global_index.search
        if "augment" in self._kinds:
            with Progress("augmenting the global descriptors"):
                self._augment(np.asarray(index.global_index[np.arange(len(index))], np.float32))

    def _augment(self, vectors: np.ndarray) -> None:
        _, ranks = nearest(vectors, vectors, min(NEIGHBOURS + 1, len(vectors)))
        augmented = augment_database(vectors, ranks, NEIGHBOURS, ALPHA)
        self._vectors = augmented
        self.search = lambda queries, k: nearest(queries, augmented, min(k, len(augmented)))

    def lists(self, queries: np.ndarray, count: int, search: Search) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and rows as `GlobalIndex.search` gives them; search: `search`, without images that must not be found."""
        if "expand" in self._kinds:
            _, rows = search(queries, NEIGHBOURS)
            queries = np.concatenate([self._expanded(query, listed) for query, listed in zip(queries, rows)])
        if "superglobal" not in self._kinds:
            return search(queries, count)
        similarities, rows = search(queries, max(count, SHORTLIST))
        for query, values, listed in zip(queries, similarities, rows):
            self._reorder(query, values, listed)
        return similarities[:, :count], rows[:, :count]

    def _expanded(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = rows[rows >= 0]
        return expand_queries(query[None], self._vectors[found], np.arange(len(found))[None], NEIGHBOURS, ALPHA)

    def _reorder(self, query: np.ndarray, similarities: np.ndarray, rows: np.ndarray) -> None:
        """One query's list, in place; below its head, similarities are at most the last of those."""
        listed = rows[rows >= 0][:SHORTLIST]
        if len(listed):
            order, values = superglobal_lists(query[None], self._vectors[listed], np.arange(len(listed))[None])
            rows[: len(listed)], similarities[: len(listed)] = listed[order[0]], values[0]
            similarities[len(listed) :] = np.minimum(similarities[len(listed) :], values[0, -1])
