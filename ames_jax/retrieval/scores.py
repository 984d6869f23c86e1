"""Logits of (query, database image) pairs: each pair once, kept on disk as it comes, resumed from what is there."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.database_cache import DatabaseCache
from ames_jax.retrieval.scoring import Scorer
from ames_jax.retrieval.task import RetrievalTask

Item, Result = TypeVar("Item"), TypeVar("Result")


class ScoreFile:
    """float32 [Nq, C] on disk, NaN where a pair has no score yet; column j is column j of the task's lists.

    facts: what the scores depend on (model, data, numbers of descriptors). Each set of facts has its own file, so scores
    of another model or of other data are never taken for these. A killed process keeps all that it had written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], queries: int, columns: int):
        text = json.dumps(facts, sort_keys=True, indent=1)
        stem = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stem}.npy"
        (folder / f"{stem}.json").write_text(text, encoding="utf-8")
        known = self._known(queries)
        if known.shape[1] < columns:
            grown = np.full((queries, columns), np.nan, np.float32)
            grown[:, : known.shape[1]] = known
            partial = self.path.with_suffix(".partial.npy")
            np.save(partial, grown)
            partial.replace(self.path)
        self.logits = np.load(self.path, mmap_mode="r+")

    def _known(self, queries: int) -> np.ndarray:
        try:
            known = np.load(self.path)
        except (FileNotFoundError, ValueError, EOFError):  # absent, or cut short: scored again
            return np.empty((queries, 0), np.float32)
        return known if len(known) == queries else np.empty((queries, 0), np.float32)


def score_task(
    task: RetrievalTask,
    needed: np.ndarray,
    scorer: Scorer,
    scores: ScoreFile,
    *,
    query_descriptors: int,
    database_descriptors: int,
    packer: BitPacker | None = None,
    memory_bytes: int = 2 << 30,
    show_progress: bool = True,
) -> int:
    """Fills `scores` where `needed` (bool [Nq, C]) has no score yet; returns how many pairs were scored.

    A thread reads the next images (and packs them to bits, for a binary model) while the devices score. An image that
    several queries share is read once as long as `memory_bytes` holds it. A query's own work is done once for each
    block of its shortlist that fits the memory; normally that is the whole shortlist.
    """
    missing = needed & np.isnan(scores.logits[:, : needed.shape[1]])
    cache = DatabaseCache(task.database, database_descriptors, packer, memory_bytes)
    work = [
        (query, columns)
        for query in np.flatnonzero(missing.any(axis=1))
        for columns in _blocks(np.flatnonzero(missing[query]), cache.images_a_block)
    ]

    def load(item: tuple[int, np.ndarray]) -> tuple[int, np.ndarray, DescriptorSet, DescriptorSet]:
        query, columns = item
        asked = task.queries.read(np.array([query]), query_descriptors)[0]
        return query, columns, asked, cache.gather(np.asarray(task.ranks[query, columns], np.int64))

    total = int(missing.sum())
    bar = tqdm(total=total, unit="pair", unit_scale=True, disable=not show_progress)
    bar.set_description(f"{task.name}: {query_descriptors} × {database_descriptors} descriptors")
    with bar:
        for query, columns, asked, images in prefetch(load, work):
            scores.logits[query, columns] = scorer.shortlist(asked, images)
            bar.update(len(columns))
    scores.logits.flush()
    return total


def prefetch(load: Callable[[Item], Result], items: Iterable[Item], ahead: int = 1) -> Iterator[Result]:
    """`load(item)` for every item in order, computed in one thread up to `ahead` items before they are asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append(pool.submit(load, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _blocks(columns: np.ndarray, size: int) -> list[np.ndarray]:
    return [columns[start : start + size] for start in range(0, len(columns), size)]
