"""Hand-made matching as vector databases and feature matchers do it: MaxSim, from one side or both, and mutual neighbours.

Each form is a sum of max(0, similarity − t) over the best partner of every query descriptor ("query"), of every descriptor of
both images ("both", half of the two sums), or over pairs that are each other's best ("mutual"). Stored bits are compared with
the query's bits ("bits") or with its projections before they are binarized ("floats": asymmetric, exact on the query's
side). All forms and thresholds are scored in one pass over the similarities.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.model import match_kernel
from ames_jax.model.match_kernel import Whitening
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.grid import KERNEL_GAMMAS, KERNEL_THRESHOLDS
from ames_jax.retrieval.matchers import Matcher
from ames_jax.runtime.files import digest_of

FORMS = ("query", "both", "mutual")
IMAGES_PER_BLOCK = 32  # whose similarities are in memory at a time


class MaxSimMatcher(Matcher):
    """Several forms of hand-made matching as one opponent: validation chooses the form with its threshold.

    Args:
      name: as tables print it.
      packer: of a binary model, whose bits are stored; or whitening: of floats, stored in float16.
      forms: of `FORMS`. queries: "bits" and "floats", for stored bits alone.
    """

    gammas = KERNEL_GAMMAS

    def __init__(
        self,
        name: str,
        *,
        packer: BitPacker | None = None,
        whitening: Whitening | None = None,
        forms: Sequence[str] = FORMS,
        queries: Sequence[str] = ("bits", "floats"),
    ):
        self.name, self.packer, self.whitening, self._forms = name, packer, whitening, tuple(forms)
        self.kind = "kernel on bits" if packer else "kernel on floats"
        self._queries = tuple(queries) if packer else ("floats",)
        self.thresholds = tuple(
            f"{form}, query {query} > {threshold:g}"
            for query in self._queries
            for form in self._forms
            for threshold in KERNEL_THRESHOLDS
        )
        read = packer.fingerprint if packer else digest_of(whitening.mean, whitening.matrix)
        self.facts = {"maxsim": list(self.thresholds), self.kind: read}

    def stored_bytes(self, count: int) -> int:
        """See `Matcher`."""
        return count * (self.packer.bits // 8 if self.packer else 2 * len(self.whitening.mean))

    def stored(self, database: DescriptorSet) -> DescriptorSet:
        """Bits, or whitened and normalised floats."""
        return self.packer.pack(database) if self.packer else match_kernel.prepare(database, self.whitening)

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        """float32 [K, F]: one score for each of `thresholds`."""
        count = database.features.shape[0]
        blocks = [database[start : start + IMAGES_PER_BLOCK] for start in range(0, count, IMAGES_PER_BLOCK)]
        columns = []
        for kind in self._queries:
            side = self._query(query, kind)
            columns.append(np.concatenate([self._scores(side, query.valid, block) for block in blocks]))
        return np.concatenate(columns, axis=1)

    def _query(self, query: DescriptorSet, kind: str) -> np.ndarray:
        """The query's vectors [Q, ·] of length 1, whose product with stored vectors of length 1 is the similarity."""
        if self.packer is None:
            return match_kernel.prepare(query, self.whitening).features
        if kind == "floats" and not query.is_packed:
            return self.packer.directions(query.features)
        packed = self.packer.pack(jax.tree.map(lambda field: field[None], query))
        return _unit_signs(packed.features[0])

    def _scores(self, query: np.ndarray, valid: np.ndarray | None, database: DescriptorSet) -> np.ndarray:
        """float32 [K, forms · thresholds] of one block."""
        vectors = _unit_signs(database.features) if database.is_packed else np.asarray(database.features)
        images, per_image, width = vectors.shape
        similarity = (vectors.reshape(-1, width) @ query.T).reshape(images, per_image, len(query))
        if valid is not None:
            similarity[..., ~np.asarray(valid)] = -1
        if database.valid is not None:
            similarity[~np.asarray(database.valid)] = -1
        partner = similarity.argmax(axis=1)
        of_query = np.take_along_axis(similarity, partner[:, None], axis=1)[:, 0]
        of_database = similarity.max(axis=2, initial=-1)
        mutual = np.where(of_query >= np.take_along_axis(of_database, partner, axis=1), of_query, -1)
        sums = {"query": (of_query,), "both": (of_query, of_database), "mutual": (mutual,)}
        return np.stack(
            [
                sum(np.maximum(best - np.float32(threshold), 0).sum(axis=1) for best in sums[form]) / len(sums[form])
                for form in self._forms
                for threshold in KERNEL_THRESHOLDS
            ],
            axis=1,
        )


def _unit_signs(packed: np.ndarray) -> np.ndarray:
    """Bits uint8 [..., n] as vectors float32 [..., 8 n] of ±1 / √(8 n)."""
    signs = np.unpackbits(packed, axis=-1).astype(np.float32) * 2 - 1
    return signs / np.float32(signs.shape[-1] ** 0.5)
