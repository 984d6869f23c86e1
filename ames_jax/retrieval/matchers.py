"""Matchers: ways to score a query against database images. Trained models here; hand-made ones in `hand_made`.

A matcher of one's own is a subclass of `Matcher`: a name, facts, the bytes that an image costs, and `shortlist`.
"""

from __future__ import annotations

import abc
import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.kinds import Model
from ames_jax.model.packing import BitPacker
from ames_jax.model.weights import model_fingerprint
from ames_jax.retrieval.grid import GAMMAS
from ames_jax.retrieval.scorer import Scorer


class Matcher(abc.ABC):
    """Scores a query against database images, and says what it stores of one.

    Attributes:
      name: as tables print it.
      kind: a key of `report.comparison.STYLES`, for colour and marker.
      facts: plain JSON, all that scores depend on beside the data: scores are kept under it.
      thresholds: one for each score of a pair that `shortlist` returns; (None,) where there is one score.
      gammas: γ among which validation chooses.
      parameters: numbers that were learned, None of what has none.
      positions: `stored` and `shortlist` are given `xy`, too, which only some data sets have.
    """

    name: str
    kind: str = "other"
    facts: dict[str, Any]
    thresholds: tuple[float | str | None, ...] = (None,)
    gammas: tuple[float, ...] = GAMMAS
    parameters: int | None = None
    positions: bool = False

    @abc.abstractmethod
    def stored_bytes(self, count: int) -> int:
        """Bytes that `count` descriptors of a database image take where they are stored."""

    def stored(self, database: DescriptorSet) -> DescriptorSet:
        """Database images [n, T, ·] as they are kept while shortlists are scored: bits, say, or what is computed once."""
        return database

    @abc.abstractmethod
    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        """float32 [K], or [K, F] for F thresholds: scores of a query [Q, ·] against `stored` images [K, T, ·].

        Called from several threads at a time.
        """


class ModelMatcher(Matcher):
    """AMES: a binary model stores bits, a full-precision one its tokens in float16."""

    def __init__(self, model: Model, name: str):
        self.name, self._model, self._scorer = name, model, Scorer(model)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        binary = model.config.bits is not None
        self.kind, self.packer = ("student", BitPacker(model)) if binary else ("teacher", None)

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """The fingerprint of the model."""
        return {"model": model_fingerprint(self._model)}

    def stored_bytes(self, count: int) -> int:
        """See `Matcher`."""
        config = self._model.config
        return count * (config.bits // 8 if config.bits else 2 * config.model_width)

    def stored(self, database: DescriptorSet) -> DescriptorSet:
        """The bits of a binary model, so that a pair is scored on what a store holds; the vectors of a float ELViS, which are
        then made once; else the descriptors."""
        if self.packer:
            return self.packer.pack(database, "database")
        return self._scorer.vectors(database) if self._scorer.keeps_vectors else database

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        """float32 logits [K]; see `Scorer.shortlist`."""
        return self._scorer.shortlist(query, database, self._scorer.keeps_vectors)
