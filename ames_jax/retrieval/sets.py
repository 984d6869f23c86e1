"""Queries, a database, the first stage's lists and how a ranking is judged: what every evaluation works on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.readers import DescriptorReader, MemoryReader, PartReader
from ames_jax.data.release_pickles import TRUTH
from ames_jax.data.shards import open_split, read_about
from ames_jax.retrieval.judgements import Judged, find_hits, judge
from ames_jax.retrieval.metrics import Protocol, average_precision, percent, protocol_score, recall_at
from ames_jax.retrieval.protocols import METRICS
from ames_jax.retrieval.ranking import Shortlist, shortlist_columns
from ames_jax.runtime.checksums import note_unchecked
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import digest_of, read_json

RIGHT = ("easy", "hard", "ok")
LARGEST_SIMILARITY = 1.01  # of vectors of length 1, with what bfloat16 rounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Queries to re-rank, whatever files they come from or whether they lie in memory.

    Attributes:
      name: of the data set, printed beside every result.
      first_stage: name of the global search that made the lists.
      ranks: database rows, best first; similarities: falling, S ≥ R.
      judged: the judged images in `ranks`.
      protocols: the figures to compute, the main one first.
      queries, database: readers of the local descriptors.
      training: descriptors of other images that statistics may be learned from, where the data set has any.
      global_files: files of the global descriptors of queries and database, where they lie beside the lists.
      query_rows: rows of the queries in their file, where only some of them are asked.
      truth: gives the judged images of other lists of the same queries.

    Raises UserError where the parts are not about the same queries and the same database.
    """

    name: str
    first_stage: str
    ranks: Int[np.ndarray, "Nq R"]
    similarities: Float[np.ndarray, "Nq S"]
    judged: Judged
    protocols: tuple[Protocol, ...]
    queries: DescriptorReader
    database: DescriptorReader
    training: DescriptorReader | None = None
    global_files: tuple[Sequence[Path], Sequence[Path]] | None = None
    query_rows: Int[np.ndarray, " Nq"] | None = None
    truth: Callable[[np.ndarray], Judged] | None = None

    def with_lists(
        self, ranks: Int[np.ndarray, "Nq R"], similarities: Float[np.ndarray, "Nq S"], first_stage: str
    ) -> RetrievalSet:
        """The same queries and database after another first stage."""
        judged = self.truth(ranks)
        return dataclasses.replace(self, ranks=ranks, similarities=similarities, judged=judged, first_stage=first_stage)

    @classmethod
    def load(cls, root: Path, name: str, *, queries: int | None = None) -> RetrievalSet:
        """Opens `ground_truth/NAME.json` of a prepared data set and what it names.

        queries: so many of the queries with a right image, spread over them; None: all queries.
        Raises UserError: there is no such evaluation, or its parts are not of the same images.
        """
        path = root / "ground_truth" / f"{name}.json"
        if not path.is_file():
            found = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
            raise UserError(f"{path}: no such evaluation; {root} has: {found}")
        truth, about = read_ground_truth(path), read_about(root)
        lists = open_neighbours(root / "neighbours" / f"{truth['query']}.{truth['database']}")
        reader, entries = open_split(root, truth["query"]), truth["queries"]
        database = open_split(root, truth["database"])
        ranks, similarities, rows = lists.indices, lists.similarities, None
        files = tuple([root / "global" / f"{truth[side]}.npy"] for side in ("query", "database"))
        if queries and len(reader) == len(lists) == len(entries):
            rows = _spread([row for row, entry in enumerate(entries) if any(map(entry.get, RIGHT))], queries, path)
            reader, entries = PartReader(reader, rows), [entries[row] for row in rows]
            ranks, similarities = np.asarray(ranks[rows]), np.asarray(similarities[rows])
        return cls(
            name=about.get("name", root.name),
            first_stage=lists.first_stage(about.get("global")),
            ranks=ranks,
            similarities=similarities,
            judged=judge(ranks, entries, len(database)),
            protocols=METRICS["revisited" if any("easy" in entry for entry in entries) else "map"],
            queries=reader,
            database=database,
            training=_training(root),
            global_files=files if all(path.is_file() for (path,) in files) else None,
            query_rows=rows,
            truth=functools.partial(judge, ground_truth=entries, images=len(database)),
        )

    def in_memory(self, query_descriptors: int, database_descriptors: int) -> RetrievalSet:
        """The same with the strongest descriptors of all its images read once, for many measurements."""
        return dataclasses.replace(
            self,
            queries=MemoryReader.load(self.queries, query_descriptors),
            database=MemoryReader.load(self.database, database_descriptors),
        )

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.ranks):
            raise UserError(
                f"{self.name}: {len(self.queries)} query images, but {len(self.ranks)} neighbour lists; "
                "both must list the same queries in the same order"
            )
        if self.ranks.shape[1] > self.similarities.shape[1] or len(self.similarities) != len(self.ranks):
            raise UserError(
                f"{self.name}: neighbour indices {list(self.ranks.shape)} and similarities "
                f"{list(self.similarities.shape)} do not match"
            )
        if self.ranks.size and (self.ranks.min() < 0 or self.ranks.max() >= len(self.database)):
            wrong = self.ranks.max() if self.ranks.max() >= len(self.database) else self.ranks.min()
            raise UserError(
                f"{self.name}: the neighbour lists of {self.first_stage} name database image {wrong}, but the database "
                f"has {len(self.database)} images: the lists belong to another database"
            )
        _check_similarities(self.similarities, f"{self.name}: the neighbour lists of {self.first_stage}")
        # Of all queries, whatever part of them a protocol counts: a few of a benchmark's may be none of its public part.
        if not any(find_hits(self.judged, one.ok, one.junk).positives.any() for one in self.protocols):
            kinds = ", ".join(dict.fromkeys(kind for protocol in self.protocols for kind in protocol.ok))
            raise UserError(
                f"{self.name}: no query has a right image ({kinds}): the ground truth is of another kind or set"
            )

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """Names and fingerprints that tell the set's pairs from others: of the lists and of both sides' descriptors."""
        return {
            "set": self.name,
            "first_stage": self.first_stage,
            "lists": digest_of(self.ranks),
            "queries": self.queries.fingerprint(),
            "database": self.database.fingerprint(),
        }

    def check_positions(self, method: str) -> None:
        """Raises UserError unless both sides say where in the image each descriptor lies, which a `method` compares."""
        for side, reader in (("queries", self.queries), ("database", self.database)):
            if reader.read(np.arange(min(1, len(reader))), 1).xy is None:
                raise UserError(
                    f"{method}: the {side} of {self.name} have no positions of their descriptors; extract shards with them, or "
                    "read the release's HDF5 files instead of a packed store"
                )

    def figures(self, order: Int[np.ndarray, "Nq H"] | None = None) -> dict[str, float]:
        """Percent by protocol name, of the first stage's lists or of these with the head in a new order."""
        judged = self.judged if order is None else self.judged.reordered(order)
        return {protocol.name: protocol_score(judged, protocol) for protocol in self.protocols}

    def average_precisions(self, order: Int[np.ndarray, "Nq H"] | None = None) -> Float64[np.ndarray, " Nq"]:
        """AP in 0..1 of every query in the main protocol; NaN for queries without a right image."""
        judged, main = self.judged if order is None else self.judged.reordered(order), self.protocols[0]
        return average_precision(find_hits(judged, main.ok, main.junk), main.depth, main.trapezoid)

    def ceiling(self, k: int, protocol: Protocol | None = None) -> float:
        """Percent of the right images that a shortlist of k holds: what a perfect re-ranking could bring to the top."""
        protocol = protocol or self.protocols[0]
        recall = recall_at(find_hits(self.judged, protocol.ok, protocol.junk), k)
        return percent(recall[slice(*protocol.part)])

    def right_rows(self, query: int | np.integer) -> set[int]:
        """The database rows in a query's list that are right by any protocol."""
        return set(self.ranks[query, self.judged.columns_of(RIGHT, self.ranks.shape[1])[query]].tolist())

    def counted(self, protocol: Protocol) -> Bool[np.ndarray, " Nq"]:
        """The queries that enter the figure of a protocol."""
        counted = np.zeros(len(self.ranks), bool)
        counted[slice(*protocol.part)] = True
        return counted & (find_hits(self.judged, protocol.ok, protocol.junk).positives > 0)

    def needed_pairs(self, k: int) -> Bool[np.ndarray, "Nq C"]:
        """The pairs that some protocol's shortlist of k needs a score for; the union is scored once.

        Raises UserError when the first stage lists fewer than k images.
        """
        junk_of = {protocol: self._junk(protocol, k) for protocol in self.protocols}
        needed = np.zeros((len(self.ranks), max(junk.shape[1] for junk in junk_of.values())), bool)
        for protocol, junk in junk_of.items():
            columns = shortlist_columns(self.ranks.shape[1], len(self.ranks), k, junk)[:, :k]
            chosen = np.zeros_like(needed)
            np.put_along_axis(chosen, columns, True, axis=1)
            chosen[:, : junk.shape[1]] &= ~junk
            needed |= chosen & self.counted(protocol)[:, None]
        return needed[:, : int(np.flatnonzero(needed.any(axis=0)).max(initial=-1)) + 1]

    def shortlist(self, scores: Float[np.ndarray, "Nq C"], k: int, protocol: Protocol | None = None) -> Shortlist:
        """The first k images of each list by a protocol, to be reordered; a score is NaN where a pair has none.

        Queries that the protocol does not count need no scores. Raises UserError where another pair has none.
        """
        protocol = protocol or self.protocols[0]
        junk = self._junk(protocol, k)
        scores = np.where(self.counted(protocol)[:, None], scores, 0)
        return Shortlist.cut(self.similarities[:, : junk.shape[1]], scores, k, junk)

    def _junk(self, protocol: Protocol, k: int) -> Bool[np.ndarray, "Nq W"]:
        """Junk of the protocol in the columns that can reach a shortlist of k."""
        most = int(find_hits(self.judged, protocol.junk, ()).positives.max(initial=0))
        return self.judged.columns_of(protocol.junk, min(self.ranks.shape[1], k + most))


def sample_descriptors(reader: DescriptorReader, count: int, per_image: int, seed: int) -> Float32[np.ndarray, "n D"]:
    """At most `count` real descriptors of random images, the strongest `per_image` of each; for whitening and ITQ."""
    rows = np.random.default_rng(seed).permutation(len(reader))[: -(-count // per_image)]
    images = reader.read(np.sort(rows), per_image)
    features = np.asarray(images.features, np.float32)
    return (features.reshape(-1, features.shape[-1]) if images.valid is None else features[images.valid])[:count]


def read_ground_truth(path: Path) -> dict[str, Any]:
    """The ground truth that `prepare import` wrote: `query` and `database`, the splits, and `queries`, a list of mappings.

    Raises UserError, naming the file and the key, where it holds something else.
    """
    truth = read_json(path, keys=TRUTH)
    note_unchecked(path)
    return truth


def _check_similarities(similarities: np.ndarray, where: str) -> None:
    """Raises UserError for similarities that are not finite, or not of vectors of length 1: λ weighs what lies in −1..1."""
    if not similarities.size:
        return
    lowest, highest = float(similarities.min()), float(similarities.max())
    if not np.isfinite([lowest, highest]).all():
        bad = int(np.argmax(~np.isfinite(similarities).all(axis=1)))
        raise UserError(
            f"{where} hold similarities that are NaN or infinity, the first of query {bad}; make them again"
        )
    largest = max(highest, -lowest)
    if largest > LARGEST_SIMILARITY:
        raise UserError(
            f"{where} hold a similarity of {largest:g}; expected −1 to 1, inner products of vectors of length 1: divide the "
            "global descriptors by their lengths, and make the lists again"
        )


def _spread(rows: list[int], count: int, path: Path) -> np.ndarray:
    """`count` of the rows, spread over them: a data set's queries often come sorted by what they show."""
    if not rows:
        raise UserError(f"{path}: no query has a right image")
    return np.array(rows)[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]


def _training(root: Path) -> DescriptorReader | None:
    there = any((root / place).is_file() for place in ("images/train.ids.txt", "train.source.json"))
    return open_split(root, "train") if there else None
