"""Hand-made matching as vector databases and feature matchers do it: MaxSim, from one side or both, and mutual neighbours.

Each form is a sum of max(0, similarity − t) over the best partner of every query descriptor ("query"), of every descriptor of
both images ("both", half of the two sums), or over descriptors that are each other's best ("mutual"). Stored bits are compared
with the query's bits ("bits") or with its projections before they are binarized ("floats": asymmetric, exact on the
query's side). All forms and thresholds are scored in one pass over the similarities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from ames_jax.data.readers import DescriptorReader
from ames_jax.descriptors import AnyArray, DescriptorSet
from ames_jax.model.packing import BitPacker
from ames_jax.model.whitening import Whitening, prepare
from ames_jax.retrieval.grid import KERNEL_GAMMAS, KERNEL_THRESHOLDS
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.sets import sample_descriptors
from ames_jax.runtime.files import digest_of

FORMS = ("query", "both", "mutual")
IMAGES_PER_BLOCK = 32  # whose similarities are in memory at a time
WHITENING_SAMPLE, WHITENING_PER_IMAGE = 30_000, 48  # descriptors that whitening is learned from


class HandMadeMatcher(Matcher):
    """Matching of the bits of a binary model (`packer`), or of whitened floats, stored in float16 (`whitening`)."""

    gammas = KERNEL_GAMMAS

    @classmethod
    def on_floats(cls, name: str, source: DescriptorReader) -> HandMadeMatcher:
        """Whitened with the statistics of these images."""
        sample = sample_descriptors(source, WHITENING_SAMPLE, WHITENING_PER_IMAGE, seed=0)
        return cls(name, whitening=Whitening.fit(sample))

    def __init__(self, name: str, packer: BitPacker | None, whitening: Whitening | None):
        self.name, self.packer, self.whitening = name, packer, whitening
        self.kind = "kernel on bits" if packer else "kernel on floats"
        read = packer.fingerprint if packer else digest_of(whitening.mean, whitening.matrix)
        self.facts = {self.kind: read}

    def stored_bytes(self, count: int) -> int:
        """See `Matcher`."""
        return count * (self.packer.bits // 8 if self.packer else 2 * len(self.whitening.mean))

    def stored(self, database: DescriptorSet) -> DescriptorSet:
        """Bits, or whitened and normalised floats."""
        return self.packer.pack(database) if self.packer else prepare(database, self.whitening)

    def similarities(
        self, query: DescriptorSet, database: DescriptorSet, kind: str
    ) -> Iterator[Float32[np.ndarray, "k T Q"]]:
        """Of a query with blocks of `stored` images [K, T, ·], in their order; −1 where either is padding.

        kind: "bits" or "floats", what of the query is compared with stored bits.
        """
        vectors = self._query(query, kind)
        for start in range(0, database.features.shape[0], IMAGES_PER_BLOCK):
            block = database[start : start + IMAGES_PER_BLOCK]
            stored = _unit_signs(block.features) if block.is_packed else np.asarray(block.features)
            similarity = (stored.reshape(-1, stored.shape[-1]) @ vectors.T).reshape(*stored.shape[:2], len(vectors))
            if query.valid is not None:
                similarity[..., ~np.asarray(query.valid)] = -1
            if block.valid is not None:
                similarity[~np.asarray(block.valid)] = -1
            yield similarity

    def _query(self, query: DescriptorSet, kind: str) -> Float32[np.ndarray, "Q d"]:
        """The query's vectors of length 1, whose product with stored vectors of length 1 is the similarity."""
        if self.packer is None:
            return prepare(query, self.whitening).features
        if kind == "floats" and not query.is_packed:
            return self.packer.directions(query.features)
        packed = self.packer.pack(jax.tree.map(lambda field: field[None], query))
        return _unit_signs(packed.features[0])


class MaxSimMatcher(HandMadeMatcher):
    """The hand-made opponent: several forms of matching in one, of which validation chooses one with its threshold.

    Args:
      name: as tables print it.
      packer: of a binary model, whose bits are stored; or whitening: of floats, stored in float16.
      forms: of `FORMS`. queries: "bits" and "floats", for stored bits alone.
    """

    def __init__(
        self,
        name: str,
        *,
        packer: BitPacker | None = None,
        whitening: Whitening | None = None,
        forms: Sequence[str] = FORMS,
        queries: Sequence[str] = ("bits", "floats"),
    ):
        super().__init__(name, packer, whitening)
        self._forms = tuple(forms)
        self._queries = tuple(queries) if packer else ("floats",)
        self.thresholds = tuple(
            f"{form}, query {query} > {threshold:g}"
            for query in self._queries
            for form in self._forms
            for threshold in KERNEL_THRESHOLDS
        )
        self.facts = {"maxsim": list(self.thresholds), **self.facts}

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> Float32[np.ndarray, "K F"]:
        """One score for each of `thresholds`."""
        columns = [
            np.concatenate([self._scores(block) for block in self.similarities(query, database, kind)])
            for kind in self._queries
        ]
        return np.concatenate(columns, axis=1)

    def _scores(self, similarity: Float32[np.ndarray, "K T Q"]) -> Float32[np.ndarray, "K F"]:
        """A column for each form and threshold."""
        of_query, of_database = similarity.max(axis=1, initial=-1), similarity.max(axis=2, initial=-1)
        sums = {"query": (of_query,), "both": (of_query, of_database)}
        if "mutual" in self._forms:
            # Equal similarities, which bits have many of, are best partners alike: their order must not matter.
            chosen = mutual_pairs(similarity, of_query, of_database).any(axis=1)
            sums["mutual"] = (np.where(chosen, of_query, -1),)
        return np.stack(
            [
                sum(np.maximum(best - np.float32(threshold), 0).sum(axis=1) for best in sums[form]) / len(sums[form])
                for form in self._forms
                for threshold in KERNEL_THRESHOLDS
            ],
            axis=1,
        )


def mutual_pairs(
    similarity: Float[np.ndarray, "K T Q"], of_query: Float[np.ndarray, "K Q"], of_database: Float[np.ndarray, "K T"]
) -> Bool[np.ndarray, "K T Q"]:
    """Pairs whose similarity is the largest of both descriptors, which `of_query` and `of_database` hold."""
    return (similarity == of_query[:, None, :]) & (similarity == of_database[:, :, None])


def _unit_signs(packed: UInt8[AnyArray, "*batch n"]) -> Float32[np.ndarray, "*batch 8*n"]:
    """Bits as vectors of ±1 / √(8 n)."""
    signs = np.unpackbits(packed, axis=-1).astype(np.float32) * 2 - 1
    return signs / np.float32(signs.shape[-1] ** 0.5)
