"""Matchers: ways to score a query against database images. AMES, and the match kernel on the same descriptors.

A matcher of one's own is a subclass of `Matcher`: a name, facts, the bytes that an image costs, and `shortlist`.
"""

from __future__ import annotations

import abc
import functools
from typing import Any

import jax
import numpy as np

from ames_jax.data.readers import DescriptorReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.model import match_kernel
from ames_jax.model.kinds import Model
from ames_jax.model.match_kernel import Whitening
from ames_jax.model.packing import BitPacker
from ames_jax.model.weights import model_fingerprint
from ames_jax.retrieval.grid import GAMMAS, KERNEL_GAMMAS, KERNEL_THRESHOLDS
from ames_jax.retrieval.scorer import Scorer
from ames_jax.retrieval.sets import sample_descriptors
from ames_jax.runtime.files import digest_of

WHITENING_SAMPLE, WHITENING_PER_IMAGE = 30_000, 48  # descriptors that whitening is learned from


class Matcher(abc.ABC):
    """Scores a query against database images, and says what it stores of one.

    Attributes:
      name: as tables print it.
      kind: a key of `report.comparison.STYLES`, for colour and marker.
      facts: plain JSON, all that scores depend on beside the data: scores are kept under it.
      thresholds: one for each score of a pair that `shortlist` returns; (None,) where there is one score.
      gammas: γ among which validation chooses.
    """

    name: str
    kind: str = "other"
    facts: dict[str, Any]
    thresholds: tuple[float | str | None, ...] = (None,)
    gammas: tuple[float, ...] = GAMMAS

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
        """The bits of a binary model, so that a pair is scored on what a store holds; else the descriptors."""
        return self.packer.pack(database, "database") if self.packer else database

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        """float32 logits [K]; see `Scorer.shortlist`."""
        return self._scorer.shortlist(query, database)


class KernelMatcher(Matcher):
    """The hand-made opponent, at all its thresholds in one pass: the match kernel of `model.match_kernel`.

    Reads the bits of a binary model (`packer`) or whitened floats, stored in float16 (`whitening`).
    """

    thresholds, gammas = KERNEL_THRESHOLDS, KERNEL_GAMMAS

    @classmethod
    def on_floats(cls, name: str, source: DescriptorReader) -> KernelMatcher:
        """Whitened with the statistics of these images."""
        sample = sample_descriptors(source, WHITENING_SAMPLE, WHITENING_PER_IMAGE, seed=0)
        return cls(name, whitening=Whitening.fit(sample))

    def __init__(self, name: str, *, packer: BitPacker | None = None, whitening: Whitening | None = None):
        self.name, self.packer, self.whitening = name, packer, whitening
        self.kind = "kernel on bits" if packer else "kernel on floats"
        read = packer.fingerprint if packer else digest_of(whitening.mean, whitening.matrix)
        self.facts = {"kernel": list(self.thresholds), self.kind: read}

    def stored_bytes(self, count: int) -> int:
        """See `Matcher`."""
        return count * (self.packer.bits // 8 if self.packer else 2 * len(self.whitening.mean))

    def stored(self, database: DescriptorSet) -> DescriptorSet:
        """Bits, or whitened and normalised floats."""
        return self.packer.pack(database) if self.packer else match_kernel.prepare(database, self.whitening)

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        """float32 [K, F]: for each threshold the sum over query descriptors of max(0, best similarity − threshold)."""
        one = self.stored(jax.tree.map(lambda field: field[None], query))[0]
        return match_kernel.kernel_scores(one, database, self.thresholds)
