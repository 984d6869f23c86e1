"""Better first stages at no extra bytes: re-ranking, query expansion and database augmentation on global descriptors.

They decide whether local descriptors earn what they cost. Vectors are L2-normalised on entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int

from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.neighbour_search import nearest
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.progress import Progress

KINDS = ("augment", "expand", "superglobal")
NEIGHBOURS, ALPHA = 9, 3.0  # of query expansion and database augmentation
SHORTLIST = 400  # images that SuperGlobal re-ranks
# Vectors [Nq, G] and a count → similarities and rows [Nq, k], −∞ and −1 where there are fewer.
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Lists:
    """A first stage: query [Nq, D] and database [N, D] of length 1, ranks int [Nq, R], similarities float32 [Nq, R]."""

    query: np.ndarray
    database: np.ndarray
    ranks: np.ndarray
    similarities: np.ndarray

    @classmethod
    def search(cls, query: Float[np.ndarray, "Nq D"], database: Float[np.ndarray, "N D"], k: int) -> Lists:
        """Lists of the k nearest (at most N)."""
        query, database = _normalised(query), _normalised(database)
        with Progress("searching the global descriptors"):
            similarities, ranks = nearest(query, database, min(k, len(database)))
        return cls(query, database, ranks, similarities)


def refine(lists: Lists, kinds: str) -> Lists:
    """The lists after one or several of `KINDS`, joined by "+": e.g. "augment+expand+superglobal".

    augment and expand change the vectors and search again (α query expansion, 9 neighbours, α = 3); superglobal reorders the
    first 400 of each list, whose similarities are then its own; below, similarities are at most the last of those.

    Raises UserError for another kind.
    """
    steps: dict[str, Callable[[Lists], Lists]] = {
        "augment": _augmented_first,
        "expand": _expanded_first,
        "superglobal": _superglobal_first,
    }
    check_kinds(kinds)
    for kind in kinds.split("+"):
        with Progress(f"refining the first stage: {kind}"):
            lists = steps[kind](lists)
    return lists


def check_kinds(kinds: str) -> None:
    """Raises UserError unless all are of `KINDS`."""
    for kind in (kind for kind in kinds.split("+") if kind not in KINDS):
        raise UserError(
            f"refine={kinds}: expected {', '.join(KINDS)}, or several joined by +{did_you_mean(kind, KINDS)}"
        )


def refined_set(data: RetrievalSet, kinds: str) -> RetrievalSet:
    """The set with a refined first stage, named so; raises UserError where it has no global descriptors."""
    if data.global_files is None:
        raise UserError(
            f"refine={kinds}: {data.name} has no global descriptors beside its lists; expected global/SPLIT.npy of a prepared "
            "data set, or the release's *_cls.hdf5 or *_global.hdf5 of queries and gallery"
        )
    query, database = (_normalised(GlobalDescriptors(paths)[:]) for paths in data.global_files)
    if data.query_rows is not None:
        query = query[data.query_rows]
    lists = refine(Lists(query, database, np.asarray(data.ranks), np.asarray(data.similarities)), kinds)
    return data.with_lists(lists.ranks, lists.similarities, f"{data.first_stage} + {kinds}")


def _augmented(database: np.ndarray) -> np.ndarray:
    """The database with each vector joined with its neighbours in it."""
    _, ranks = nearest(database, database, min(NEIGHBOURS + 1, len(database)))
    return augment_database(database, ranks, NEIGHBOURS, ALPHA)


def _augmented_first(lists: Lists) -> Lists:
    return Lists.search(lists.query, _augmented(lists.database), lists.ranks.shape[1])


def _expanded_first(lists: Lists) -> Lists:
    query = expand_queries(lists.query, lists.database, lists.ranks, NEIGHBOURS, ALPHA)
    return Lists.search(query, lists.database, lists.ranks.shape[1])


def _superglobal_first(lists: Lists) -> Lists:
    head, similarities = superglobal_lists(lists.query, lists.database, lists.ranks)
    ranks, values = lists.ranks.copy(), np.asarray(lists.similarities, np.float32).copy()
    count = head.shape[1]
    ranks[:, :count], values[:, :count] = head, similarities
    values[:, count:] = np.minimum(values[:, count:], similarities[:, -1:])
    return dataclasses.replace(lists, ranks=ranks, similarities=values)


@runtime_checkable
class SearchedVectors(Protocol):
    """Vectors [N, G] that can be searched, as those of an index; `index.first_stage.GlobalIndex`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]: ...


class RefinedStage:
    """Searches a first stage with `KINDS` of refinement joined by "+", in their order: `refine` for queries that come one by
    one.

    augment holds all global descriptors in memory, each joined with its neighbours, and searches them exactly; this is
    done once, on opening.

    Raises UserError for other kinds, or another order.
    """

    def __init__(self, stage: SearchedVectors, kinds: str):
        check_kinds(kinds)
        self._kinds = kinds.split("+")
        if self._kinds != [kind for kind in KINDS if kind in self._kinds]:
            raise UserError(f"refine={kinds}: a search refines in the order {'+'.join(KINDS)}, each once")
        self._vectors: SearchedVectors | np.ndarray = stage
        self.search: Search = stage.search
        if "augment" in self._kinds:
            with Progress("augmenting the global descriptors"):
                vectors = _augmented(np.asarray(stage[np.arange(len(stage))], np.float32))
            self._vectors = vectors
            self.search = lambda queries, k: nearest(queries, vectors, min(k, len(vectors)))

    def lists(self, queries: np.ndarray, count: int, search: Search) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and rows as `Search` gives them; search: `search`, without images that must not be found."""
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


def superglobal(
    query: Float[np.ndarray, "Nq D"],
    database: Float[np.ndarray, "N _"],
    ranks: Int[np.ndarray, "_ R"],
    shortlist: int = SHORTLIST,
    neighbours: int = 9,
    weight: float = 0.15,
) -> Int[np.ndarray, "_ R"]:
    """The lists re-ranked as SuperGlobal does (Shao et al., ICCV 2023): the first `shortlist` of each; the rest follows.

    Args:
      query, database: global descriptors of one width.
      ranks: database rows of the first stage, best first; R may be smaller than N.
      shortlist: images of each list that are refined (paper: 400).
      neighbours: nearest images within the shortlist that each one is averaged with (paper: 9).
      weight: of a neighbour, times its cosine; the image itself has weight 1 (paper: 0.15).

    Raises:
      UserError: vectors of different widths, or lists of another database.
    """
    head, _ = superglobal_lists(query, database, ranks, shortlist, neighbours, weight)
    new = ranks.copy()
    new[:, : head.shape[1]] = head
    return new


def superglobal_lists(
    query: Float[np.ndarray, "Nq D"],
    database: Float[np.ndarray, "N _"],
    ranks: Int[np.ndarray, "_ R"],
    shortlist: int = SHORTLIST,
    neighbours: int = 9,
    weight: float = 0.15,
) -> tuple[Int[np.ndarray, "Nq M"], Float32[np.ndarray, "Nq M"]]:
    """As `superglobal`, with the similarities that it sorts by: ranks, and similarities, falling."""
    query, database = _checked(query, database, ranks)
    count = min(shortlist, ranks.shape[1])
    nearest_count = min(neighbours + 1, count)
    new, similarities = ranks[:, :count].copy(), np.empty((len(ranks), count), np.float32)
    for row, (vector, listed) in enumerate(zip(query, ranks[:, :count])):
        images = _normalised(database[listed])
        cosines = images @ images.T
        # Each image comes first among its own neighbours, with weight 1 instead of its cosine's share.
        nearest_images = np.argsort(-cosines, axis=1, kind="stable")[:, :nearest_count]
        weights = weight * np.take_along_axis(cosines, nearest_images, axis=1)
        weights[:, 0] = 1
        refined = np.einsum("nk,nkd->nd", weights, images[nearest_images]) / weights.sum(axis=1, keepdims=True)
        first = refined @ vector
        best = np.argsort(-first, kind="stable")[:nearest_count]
        scores = (first + refined @ refined[best].max(axis=0)) / 2
        order = np.argsort(-scores, kind="stable")
        new[row], similarities[row] = listed[order], scores[order]
    return new, similarities


def expand_queries(
    query: Float[np.ndarray, "Nq D"],
    database: Float[np.ndarray, "N _"],
    ranks: Int[np.ndarray, "_ R"],
    neighbours: int = 9,
    alpha: float = 3.0,
) -> Float32[np.ndarray, "Nq D"]:
    """Queries of length 1, each the sum of itself and its first neighbours, weighted by cosine^alpha.

    Alpha query expansion (Radenović et al., TPAMI 2019); search again with them. R: at least `neighbours`.
    Negative cosines count as 0. Raises UserError for vectors of different widths, or lists of another database.
    """
    query, database = _checked(query, database, ranks)
    listed = ranks[:, :neighbours]
    images = _normalised(database[listed])
    weights = np.maximum(np.einsum("qd,qkd->qk", query, images), 0) ** np.float32(alpha)
    return _normalised(query + np.einsum("qk,qkd->qd", weights, images))


def augment_database(
    database: Float[np.ndarray, "N D"],
    ranks: Int[np.ndarray, "N R"],
    neighbours: int = 9,
    alpha: float = 3.0,
    block: int = 4096,
) -> Float32[np.ndarray, "N D"]:
    """The database with each vector expanded by its neighbours in the database, as `expand_queries`.

    ranks: at least neighbours + 1 of each, the database searched with itself; an image's own row counts as itself.
    """
    parts = []
    for start in range(0, len(database), block):
        rows = np.arange(start, min(start + block, len(database)))
        listed = ranks[rows, : neighbours + 1]
        others = np.argsort(listed == rows[:, None], axis=1, kind="stable")[:, :neighbours]
        listed = np.take_along_axis(listed, others, axis=1)
        parts.append(expand_queries(database[rows], database, listed, neighbours, alpha))
    return np.concatenate(parts)


def _checked(query: np.ndarray, database: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if query.ndim != 2 or database.ndim != 2 or query.shape[1] != database.shape[1]:
        raise UserError(
            f"global descriptors of queries {list(query.shape)} and database {list(database.shape)} differ in width: "
            "both must come from one backbone"
        )
    if ranks.ndim != 2 or len(ranks) != len(query):
        raise UserError(
            f"{len(query)} query vectors, but lists of shape {list(ranks.shape)}: expected one list per query"
        )
    if ranks.size and not 0 <= ranks.min() <= ranks.max() < len(database):
        raise UserError(
            f"the lists name database row {ranks.max()}, but there are {len(database)} global descriptors: "
            "they belong to another database"
        )
    return _normalised(np.asarray(query, np.float32)), database


def _normalised(vectors: Float[np.ndarray, "*N D"]) -> Float32[np.ndarray, "*N D"]:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
