"""Scores of (query, database image) pairs: each pair once, kept as they come, resumed, shared by all processes."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ames_jax.data.readers import DescriptorReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.scorer import in_threads, queries_at_a_time
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.checksums import check, entries, forget, record
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_array, write_array, write_file
from ames_jax.runtime.processes import as_lead, is_lead, join_shares, own_share
from ames_jax.runtime.progress import Progress

READ_BYTES = 64 << 20
TIMED_QUERIES = 8


@dataclass(frozen=True)
class ScoreKeeper:
    """Makes scores, each once, and keeps them.

    Attributes:
      folder: where they are kept under all that they depend on, so that a killed run goes on and a longer shortlist scores
        what is new; None: nowhere.
      memory_bytes: for descriptors on their way to the devices.
      shared: all processes ask for the same scores, and each makes its share of the queries; False: this one is alone.
    """

    folder: Path | None = None
    memory_bytes: int = 2 << 30
    shared: bool = True

    def scores(self, data: RetrievalSet, matcher: Matcher, k: int, counts: Counts) -> np.ndarray:
        """float32 [Nq, C, F] for the F thresholds of the matcher: of every pair that a shortlist of k needs, NaN elsewhere.

        Column j is column j of the set's lists. Raises UserError when the first stage lists fewer than k images.
        """
        if matcher.positions:
            data.check_positions(matcher.name)
        needed = data.needed_pairs(k)
        shape = (*needed.shape, len(matcher.thresholds))
        facts = {**matcher.facts, **data.facts, "descriptors": counts} if self.folder else {}
        if not self.shared or jax.process_count() == 1:
            kept = _open_scores(self.folder, facts, shape)
            fill(kept, needed, data, matcher, counts, memory_bytes=self.memory_bytes)
            return np.array(kept[:, : shape[1]])
        part = self.folder and self.folder / f"process_{jax.process_index()}_of_{jax.process_count()}"
        kept, mine = _open_scores(part, facts, shape), own_share(len(needed))
        whole = _open_scores(self.folder, facts, shape) if is_lead() else np.zeros(shape, np.float32)
        before = np.asarray(as_lead(np.array(whole[:, : shape[1]])))[mine]
        kept[mine, : shape[1]] = np.where(np.isnan(before), kept[mine, : shape[1]], before)
        own = needed & np.isin(np.arange(len(needed)), mine)[:, None]
        fill(kept, own, data, matcher, counts, memory_bytes=self.memory_bytes)
        joined = join_shares(np.array(kept[mine, : shape[1]]), len(needed))
        if is_lead():
            _unrecord(whole)
            whole[:, : shape[1]] = joined
            _flush(whole)
        return joined


def fill(
    scores: np.ndarray,
    needed: np.ndarray,
    data: RetrievalSet,
    matcher: Matcher,
    counts: Counts,
    *,
    memory_bytes: int,
) -> int:
    """Fills `scores` (float32 [Nq, ≥ C, F]) where `needed` (bool [Nq, C]) has none yet; returns how many pairs it scored.

    Threads read and score several queries at a time. An image that several queries share is read, and made what the
    matcher stores of it, once as long as `memory_bytes` holds it. A query's own work is done once for each block of its
    shortlist that fits the memory; normally that is the whole shortlist.
    """
    missing = needed & np.isnan(scores[:, : needed.shape[1], 0])
    total, threads = int(missing.sum()), queries_at_a_time()
    if not total:
        if not _is_recorded(scores):  # a run that was killed after its last pair
            _flush(scores)
        return 0

    def read(images: DescriptorSet) -> DescriptorSet:
        return images if matcher.positions else DescriptorSet(images.features, images.valid)

    def stored(images: DescriptorSet) -> DescriptorSet:
        return matcher.stored(read(images))

    cache = DatabaseCache(data.database, counts.database, stored, memory_bytes, threads)
    work = [
        (query, columns[start : start + cache.images_per_block])
        for query, columns in ((query, np.flatnonzero(missing[query])) for query in range(len(missing)))
        for start in range(0, len(columns), cache.images_per_block)
    ]

    def score(item: tuple[int, np.ndarray]) -> np.ndarray:
        query, columns = item
        rows = np.asarray(data.ranks[query, columns], np.int64)
        try:
            return matcher.shortlist(read(data.queries.read(np.array([query]), counts.query))[0], cache.gather(rows))
        except UserError:
            _refuse_strange(data.queries, np.array([query]), counts.query, "query")
            _refuse_strange(data.database, np.unique(rows), counts.database, "database")
            raise

    _unrecord(scores)
    label = f"{data.name}, {matcher.name}, {counts.query} × {counts.database} descriptors"
    with Progress(label, total, "pairs") as progress:
        for (query, columns), found in zip(work, in_threads(score, work, threads)):
            scores[query, columns] = found.reshape(len(columns), -1)
            progress.update(len(columns))
    _flush(scores)
    return total


def _refuse_strange(reader: DescriptorReader, rows: np.ndarray, count: int, side: str) -> None:
    """Raises UserError that names the first image with NaN or infinity, where a matcher saw its place in a block alone."""
    images = reader.read(rows, count)
    bad = ~np.isfinite(np.asarray(images.features)).all(axis=-1)
    for place in np.flatnonzero((bad if images.valid is None else bad & images.valid).any(axis=1))[:1]:
        where = getattr(reader, "path", getattr(reader, "root", "the descriptors"))
        raise UserError(f"{where}: {side} image {rows[place]} holds NaN or infinity: extract it again")


def pairs_per_second(data: RetrievalSet, matcher: Matcher, k: int, counts: Counts) -> float:
    """Speed of a matcher on the first k images of some lists, with as many queries at a time as `fill` takes.

    What is stored of the images lies in memory; the programs are compiled before.
    """
    lists = np.asarray(data.ranks[:TIMED_QUERIES, :k], np.int64)
    needed, places = np.unique(lists, return_inverse=True)
    queries, database = (
        data.queries.read(np.arange(len(lists)), counts.query),
        data.database.read(needed, counts.database),
    )
    if not matcher.positions:
        queries, database = (DescriptorSet(side.features, side.valid) for side in (queries, database))
    stored = matcher.stored(database)

    def score(query: int) -> None:
        matcher.shortlist(queries[query], stored[places.reshape(lists.shape)[query]])

    score(0)
    start = time.perf_counter()
    for _ in in_threads(score, range(len(lists)), queries_at_a_time(), first_alone=False):
        pass
    return lists.size / (time.perf_counter() - start)


class DatabaseCache:
    """The images used last, up to about half of `memory_bytes`; the rest is for the blocks on their way to the devices.

    count: descriptors of each image. stored: what is made of images when they are read, and kept of them.
    threads: how many call `gather` at a time.
    """

    def __init__(
        self,
        reader: DescriptorReader,
        count: int,
        stored: Callable[[DescriptorSet], DescriptorSet],
        memory_bytes: int,
        threads: int = 2,
    ):
        self._reader, self._count, self._stored, self._lock = reader, count, stored, threading.Lock()
        read = reader.read(np.arange(min(1, len(reader))), count)
        kept = stored(read)
        self._images_per_read = max(1, READ_BYTES // max(1, read.features[0].nbytes))
        bytes_per_image = kept.features[0].nbytes + kept.count + (0 if kept.xy is None else kept.xy[0].nbytes)
        self.images_per_block = max(1, memory_bytes // (4 * threads * bytes_per_image))
        capacity = min(len(reader), max(self.images_per_block, memory_bytes // (2 * bytes_per_image)))
        self._kept = jax.tree.map(lambda field: np.empty((capacity, *field.shape[1:]), field.dtype), kept)
        self._slot_of = np.full(len(reader), -1, np.int64)
        self._image_in = np.full(capacity, -1, np.int64)
        self._last_use = np.zeros(capacity, np.int64)
        self._clock = 0
        self.images_read = 0

    def gather(self, rows: np.ndarray) -> DescriptorSet:
        """Images `rows` (int [n], distinct, n ≤ images_per_block): a copy [n, T, ·]; `valid` as the reader gives it."""
        with self._lock:
            self._clock += 1
            slots = self._slot_of[rows]
            self._last_use[slots[slots >= 0]] = self._clock
            missing = np.sort(rows[slots < 0])
            free = np.argsort(self._last_use, kind="stable")[: len(missing)]
            for start in range(0, len(missing), self._images_per_read):
                part = slice(start, start + self._images_per_read)
                self._keep(missing[part], free[part])
            slots = self._slot_of[rows]
            return self._kept[slots]

    def _keep(self, rows: np.ndarray, slots: np.ndarray) -> None:
        images = self._stored(self._reader.read(rows, self._count))
        self._slot_of[self._image_in[slots][self._image_in[slots] >= 0]] = -1
        for kept, read in zip(jax.tree.leaves(self._kept), jax.tree.leaves(images), strict=True):
            kept[slots] = read
        self._image_in[slots], self._slot_of[rows] = rows, slots
        self._last_use[slots] = self._clock
        self.images_read += len(rows)


def _open_scores(folder: Path | None, facts: dict[str, Any], shape: tuple[int, int, int]) -> np.ndarray:
    """float32 [Nq, ≥ C, F]: what the folder has under these facts, NaN for pairs without a score; without a folder, memory.

    A file on disk is written through, so a killed process keeps all that it had scored. Of a file that is cut short or
    damaged nothing is taken. (Its checksum is kept once a run has gone to its end.)
    """
    if folder is None:
        return np.full(shape, np.nan, np.float32)
    text = json.dumps(facts, sort_keys=True, indent=1)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    try:
        kept = read_array(path)
        check(path, whole=True)
    except UserError as error:
        if path.exists():
            print(f"{error}; its pairs are scored again", file=sys.stderr)
            forget(folder, path.name)
        kept = np.empty((shape[0], 0, shape[2]), np.float32)
    if kept.dtype != np.float32 or kept.ndim != 3 or (kept.shape[0], kept.shape[2]) != (shape[0], shape[2]):
        kept = np.empty((shape[0], 0, shape[2]), np.float32)
    if kept.shape[1] < shape[1]:
        grown = np.full(shape, np.nan, np.float32)
        grown[:, : kept.shape[1]] = kept
        write_file(path.with_suffix(".json"), text)
        write_array(path, grown)
    return np.load(path, mmap_mode="r+")


def _is_recorded(scores: np.ndarray) -> bool:
    """False for a file that is written through and has no checksum."""
    return not isinstance(scores, np.memmap) or Path(scores.filename).name in entries(Path(scores.filename).parent)


def _unrecord(scores: np.ndarray) -> None:
    """Drops the checksum of a file that is about to be written through."""
    if isinstance(scores, np.memmap):
        forget(Path(scores.filename).parent, Path(scores.filename).name)


def _flush(scores: np.ndarray) -> None:
    if isinstance(scores, np.memmap):
        scores.flush()
        record(Path(scores.filename).parent, Path(scores.filename).name)
