"""A method that scores pairs (the model, or the match kernel), bound to a folder that keeps its scores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.model import matching
from ames_jax.model.ames import AMES
from ames_jax.model.packing import BitPacker
from ames_jax.model.weights import model_fingerprint
from ames_jax.retrieval.scores import ScoreFile, score_task
from ames_jax.retrieval.scoring import Scorer
from ames_jax.retrieval.task import RetrievalTask
from ames_jax.runtime.processes import as_lead, is_lead, join_shares, own_share


class PairScorer(Protocol):
    """Scores one query [Q, ·] against its shortlist [K, T, ·]: float32 [K]."""

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray: ...


class KernelScorer:
    """The match kernel at one threshold, on floats or, given a packer, on the model's own bits."""

    def __init__(self, threshold: float, packer: BitPacker | None):
        self._threshold, self._packer = threshold, packer

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        """float32 [K]: the sum over query descriptors of max(0, best similarity − threshold)."""
        if self._packer is not None:
            query = self._packer.pack(jax.tree.map(lambda field: field[None], query), "query")[0]
        best = matching.best_similarities(matching.prepare(query), matching.prepare(database))
        return np.maximum(best - np.float32(self._threshold), 0).sum(axis=1)


@dataclass(frozen=True)
class Method:
    """How pairs are scored, and what a database descriptor costs.

    kind: a key of `report.comparison.STYLES`. facts: what the scores depend on beside the data, plain JSON.
    bytes_per_descriptor: stored for one database descriptor.
    """

    name: str
    kind: str
    scorer: PairScorer
    packer: BitPacker | None
    bytes_per_descriptor: int
    facts: dict[str, Any]

    @staticmethod
    def of_model(model: AMES, name: str) -> Method:
        """AMES: bits for a binary model, else tokens in float16."""
        config = model.config
        packer = None if config.bits is None else BitPacker(model)
        stored = 2 * config.model_width if config.bits is None else config.bits // 8
        kind = "teacher" if config.bits is None else "student"
        return Method(name, kind, Scorer(model), packer, stored, {"model": model_fingerprint(model)})

    def kernel(self, threshold: float, descriptor_width: int) -> Method:
        """The match kernel on what this method reads: the model's bits, or floats (stored in float16)."""
        facts = {"kernel": threshold, "binarizer": self.packer.fingerprint if self.packer else None}
        kind, stored = ("kernel on floats", 2 * descriptor_width)
        if self.packer:
            kind, stored = "kernel on bits", self.bytes_per_descriptor
        name = f"match {kind}"
        return Method(name, kind, KernelScorer(threshold, self.packer), self.packer, stored, facts)


@dataclass(frozen=True)
class ScoreKeeper:
    """Where scores are kept, and the memory for making them."""

    folder: Path
    memory_bytes: int
    show_progress: bool = True

    def logits(
        self, task: RetrievalTask, method: Method, k: int, query_descriptors: int, database_descriptors: int
    ) -> np.ndarray:
        """float32 [Nq, C] with a score for every pair that a shortlist of k needs, NaN elsewhere; scores what is new.

        Every process scores its share of the queries, into a file of its own; all get all scores, and the lead process
        writes them into the one file that later runs of any number of processes read.
        """
        needed = task.needed_pairs(k)
        facts = {
            **method.facts,
            "task": task.name,
            "first_stage": task.first_stage,
            "lists": _digest(np.ascontiguousarray(task.ranks[:, : min(task.ranks.shape[1], 100)])),
            "database_images": len(task.database),
            "query_sample": _digest_descriptors(task.queries.read(np.arange(1), query_descriptors)),
            "database_sample": _digest_descriptors(task.database.read(np.arange(1), database_descriptors)),
            "query_descriptors": query_descriptors,
            "database_descriptors": database_descriptors,
        }
        score = partial(
            score_task, task, scorer=method.scorer, query_descriptors=query_descriptors,
            database_descriptors=database_descriptors, packer=method.packer, memory_bytes=self.memory_bytes,
            show_progress=self.show_progress and is_lead(),
        )  # fmt: skip
        queries, columns = len(task.ranks), needed.shape[1]
        processes = jax.process_count()
        if processes == 1:
            scores = ScoreFile(self.folder, facts, queries, columns)
            score(needed=needed, scores=scores)
            return np.array(scores.logits[:, :columns])
        part = self.folder / f"process_{jax.process_index()}_of_{processes}"
        scores = ScoreFile(part, facts, queries, columns)
        mine = own_share(queries)
        if is_lead():
            known = np.array(ScoreFile(self.folder, facts, queries, columns).logits[:, :columns])
        else:
            known = np.zeros((queries, columns), np.float32)
        known = np.asarray(as_lead(known))
        scores.logits[mine, :columns] = np.where(np.isnan(known[mine]), scores.logits[mine, :columns], known[mine])
        score(needed=needed & np.isin(np.arange(queries), mine)[:, None], scores=scores)
        joined = join_shares(np.array(scores.logits[mine, :columns]), queries)
        if is_lead():
            whole = ScoreFile(self.folder, facts, queries, columns)
            whole.logits[:, :columns] = joined
            whole.logits.flush()
        return joined


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr((array.shape, array.dtype.str)).encode() + array.tobytes()).hexdigest()[:16]


def _digest_descriptors(descriptors: DescriptorSet) -> str:
    """Of one image: tells apart backbones and extractions, without reading whole files."""
    return _digest(np.ascontiguousarray(descriptors.features))
