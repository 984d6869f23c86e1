"""Scores of a set's pairs as a file: what λ, γ and k are swept from without scoring again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import whole_file


@dataclass(frozen=True)
class PairLogits:
    """Scores of a set's pairs: float32 [Nq, C], NaN where a pair has none; column j is column j of the set's lists.

    bytes_per_image: of the descriptors that a database image has in fact, where fewer are stored than asked for.
    """

    logits: np.ndarray
    model: str
    query_descriptors: int
    database_descriptors: int
    bytes_per_image: int

    @staticmethod
    def made(data: RetrievalSet, matcher: Matcher, keeper: ScoreKeeper, k: int, counts: Counts) -> PairLogits:
        """The scores that a shortlist of k needs, with these numbers of descriptors."""
        scores = keeper.scores(data, matcher, k, counts)
        stored = data.database.read(np.arange(1), counts.database).count
        return PairLogits(scores[..., 0], matcher.name, *counts, matcher.stored_bytes(stored))

    def save(self, path: Path, data: RetrievalSet) -> None:
        """Writes `logits.npz`: the fields, and `indices` [Nq, C], `similarities` float32 [Nq, C] of the first stage's
        lists, `dataset` and `first_stage` (text)."""
        width = self.logits.shape[1]
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                **vars(self),
                indices=np.asarray(data.ranks[:, :width]),
                similarities=np.asarray(data.similarities[:, :width], np.float32),
                dataset=data.name,
                first_stage=data.first_stage,
            )

    @staticmethod
    def load(path: str, data: RetrievalSet) -> PairLogits:
        """Reads `logits.npz`; raises UserError when it is missing, not such a file, or of other neighbour lists."""
        try:
            with np.load(path, allow_pickle=False) as file:
                fields = {name: file[name] for name in (*PairLogits.__dataclass_fields__, "indices")}
            indices, logits = fields.pop("indices"), fields.pop("logits")
            if logits.dtype != np.float32 or logits.shape != indices.shape or logits.ndim != 2:
                raise ValueError(f"logits are {logits.dtype} {logits.shape}, indices {indices.shape}")
            facts = {name: value.item() for name, value in fields.items()}
        except Exception as error:  # a damaged archive can fail in any part of its parsers
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--config.logits={path} is not a logits.npz of `ames_jax.evaluate`: {reason}") from error
        if indices.shape[0] != len(data.ranks) or not np.array_equal(indices, data.ranks[:, : indices.shape[1]]):
            raise UserError(f"--config.logits={path} was scored on other neighbour lists than those of {data.name}")
        return PairLogits(logits, **facts)
