"""Places of the judged images in a ranking: the part of evaluation that touches the long arrays. NumPy only.

What a ranking and a ground truth are, and what holds for junk, repeats and fillers, is defined in `metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Num, Shaped

from ames_jax.runtime.errors import UserError

KINDS = ("easy", "hard", "ok", "junk")
GroundTruth = Sequence[Mapping[str, Any]]  # of a file: `judge` refuses what is no list of rows


@dataclass(frozen=True)
class Judged:
    """The judged images that a ranking holds, ordered by query, then place.

    query, place, kind: int64 [F]; place counts from 0 in the whole ranking, kind indexes KINDS. counts: int64 [Nq, 4],
    how many images of each kind the ground truth lists, found or not. length: R.
    """

    query: np.ndarray
    place: np.ndarray
    kind: np.ndarray
    counts: np.ndarray
    length: int

    def reordered(self, order: Int[np.ndarray, "Nq H"]) -> Judged:
        """The same in a ranking whose column j is the old column `order[:, j]`; rows are permutations of H."""
        new_place = np.empty(order.shape, np.int64)
        np.put_along_axis(new_place, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
        moved = self.place < order.shape[1]
        place = self.place.copy()
        place[moved] = new_place[self.query[moved], place[moved]]
        by_place = np.lexsort((place, self.query))
        return replace(self, query=self.query[by_place], place=place[by_place], kind=self.kind[by_place])

    def columns_of(self, kinds: Sequence[str], width: int) -> Bool[np.ndarray, "Nq {width}"]:
        """True where one of the first `width` places holds an image of these kinds (say, junk)."""
        chosen = _are_of(self.kind, kinds) & (self.place < width)
        columns = np.zeros((len(self.counts), width), bool)
        columns[self.query[chosen], self.place[chosen]] = True
        return columns


@dataclass(frozen=True)
class Hits:
    """Places of the right images once junk is gone.

    query, place, before: int64 [F]; place and the number of right images before it count from 0. positives: int64 [Nq],
    all right images of the ground truth. length: R.
    """

    query: np.ndarray
    place: np.ndarray
    before: np.ndarray
    positives: np.ndarray
    length: int

    def sum_by_query(self, values: Num[np.ndarray, " F"] | Bool[np.ndarray, " F"]) -> Float64[np.ndarray, " Nq"]:
        """The sum of one value per hit; NaN for queries without a right image."""
        sums = np.bincount(self.query, weights=values, minlength=len(self.positives)).astype(np.float64)
        return np.where(self.positives > 0, sums, np.nan)


def judge(ranks: Shaped[np.ndarray, "Nq R"], ground_truth: GroundTruth, images: int | None = None) -> Judged:
    """Finds the judged images of `ground_truth` in `ranks`, whole numbers.

    images: of the database, where it is known: then the ground truth must name no other.
    Raises UserError when the two differ in their number of queries, or an entry is malformed; TypeError when `ranks`
    does not hold integers.
    """
    ranks = _checked(ranks, len(ground_truth))
    counts = np.zeros((len(ranks), len(KINDS)), np.int64)
    query, place, kind = [], [], []
    for row, entry in enumerate(ground_truth):
        listed, listed_kind = _listed(entry, row)
        if images is not None and listed.size and listed[-1] >= images:
            raise UserError(
                f"ground truth of query {row} names database row {listed[-1]}, but the database has {images} images: it "
                "belongs to another database"
            )
        counts[row] = np.bincount(listed_kind, minlength=len(KINDS))
        places = np.flatnonzero(np.isin(ranks[row], listed))
        found, first = np.unique(ranks[row, places], return_index=True)
        by_place = np.argsort(first)
        place.append(places[first[by_place]])
        kind.append(listed_kind[np.searchsorted(listed, found[by_place])])
        query.append(np.full(len(found), row))
    return Judged(_joined(query), _joined(place), _joined(kind), counts, ranks.shape[1])


def judge_by_class(
    ranks: Int[np.ndarray, "Nq R"],
    query_labels: Int[np.ndarray, " Nq"],
    database_labels: Int[np.ndarray, " Ng"],
    own: Int[np.ndarray, " Nq"] | None = None,
) -> Judged:
    """Judgements by class label: an image is right when its label is the query's, and not negative.

    own: the query's own row in the database (it is junk),
    negative where it has none. Raises UserError when an entry of the ranking lies outside the database.
    """
    ranks = _checked(ranks, len(query_labels))
    query_labels, database_labels = np.asarray(query_labels), np.asarray(database_labels)
    if ranks.size and ranks.max() >= len(database_labels):
        raise UserError(
            f"a ranking names database row {ranks.max()}, but the database has {len(database_labels)} labels: "
            "the ranking belongs to another database"
        )
    by_label = np.argsort(database_labels, kind="stable")
    edges = [np.searchsorted(database_labels[by_label], query_labels, side) for side in ("left", "right")]
    entries = []
    for label, start, stop, itself in zip(query_labels, *edges, np.full(len(ranks), -1) if own is None else own):
        same = by_label[start:stop] if label >= 0 else by_label[:0]
        entries.append({"ok": same[same != itself], "junk": [itself] if itself >= 0 else []})
    return judge(ranks, entries)


def find_hits(judged: Judged, ok: Sequence[str] = ("ok",), junk: Sequence[str] = ("junk",)) -> Hits:
    """The right images' places after the junk of the protocol has been taken out."""
    right, out = _are_of(judged.kind, ok), _are_of(judged.kind, junk)
    place = judged.place - _count_before(out, judged.query)
    before = _count_before(right, judged.query)
    positives = judged.counts[:, [KINDS.index(name) for name in ok]].sum(1)
    return Hits(judged.query[right], place[right], before[right], positives, judged.length)


def _are_of(kind: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """bool [F], True for images of one of these kinds; a sweep asks often, and a table is much faster than `np.isin`."""
    table = np.zeros(len(KINDS), bool)
    table[[KINDS.index(name) for name in names]] = True
    return table[kind]


def _checked(ranks: np.ndarray, queries: int) -> np.ndarray:
    ranks = np.asarray(ranks)
    if not np.issubdtype(ranks.dtype, np.integer):
        raise TypeError(f"ranks must hold integers (database rows), not {ranks.dtype}")
    if ranks.ndim != 2 or len(ranks) != queries:
        raise UserError(
            f"the ground truth has {queries} queries, the ranking has shape {list(ranks.shape)}: "
            "they belong to different query sets"
        )
    return ranks


def _listed(entry: Any, row: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows that an entry lists, ascending and once each, and the kind of each."""
    if not isinstance(entry, Mapping):
        raise UserError(f"ground truth of query {row}: expected lists {', '.join(KINDS)}, found {type(entry).__name__}")
    if not any(kind in entry for kind in KINDS):
        raise UserError(
            f"ground truth of query {row} has none of the lists {', '.join(KINDS)}; "
            f"it has {', '.join(map(str, entry)) or 'nothing'}"
        )
    lists = [_whole(entry.get(kind, ()), row, kind) for kind in KINDS]
    rows, first = np.unique(np.concatenate(lists), return_index=True)
    if rows.size and rows[0] < 0:
        raise UserError(f"ground truth of query {row} lists database row {rows[0]}: rows count from 0")
    return rows, np.repeat(np.arange(len(KINDS)), [len(rows_of_kind) for rows_of_kind in lists])[first]


def _whole(rows: Any, row: int, kind: str) -> np.ndarray:
    """int64 [n]; raises UserError for anything but whole numbers, so that 0.5 or true is not taken for a row."""
    try:
        values = np.asarray(rows)
    except ValueError:  # lists of different lengths
        values = np.array([None])
    if not values.size:
        return np.empty(0, np.int64)
    listed = values.ndim == 1 and (isinstance(rows, np.ndarray) or not any(isinstance(row, bool) for row in rows))
    if listed and (values.dtype.kind in "iu" or (values.dtype.kind == "f" and (values == np.floor(values)).all())):
        with np.errstate(invalid="ignore"):
            found = values.astype(np.int64)
        if (found == values).all():
            return found
    raise UserError(
        f"ground truth of query {row}: {kind} holds {str(rows)[:60]}; expected database rows, whole numbers"
    )


def _count_before(flag: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Number of flagged entries of the same query before each entry; entries are ordered by query, then place."""
    running = np.concatenate([[0], np.cumsum(flag)])
    return running[:-1] - running[np.searchsorted(query, query)]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts])
