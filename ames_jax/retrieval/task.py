"""What an evaluation needs of a data set, whatever files it came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ames_jax.data.store import DescriptorReader
from ames_jax.retrieval.judgements import Judged, find_hits
from ames_jax.retrieval.metrics import Protocol, protocol_score
from ames_jax.retrieval.ranking import shortlist_columns
from ames_jax.runtime.errors import UserError


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, a database, the first stage's lists and how a ranking is judged.

    Attributes:
      name: of the data set, printed beside every result.
      first_stage: name of the global search that made the lists.
      ranks: int [Nq, R], database rows, best first; similarities: float [Nq, ≥ columns to re-rank], falling.
      judged: the judged images in `ranks`.
      protocols: the figures to compute.
      queries, database: readers of the local descriptors.
    """

    name: str
    first_stage: str
    ranks: np.ndarray
    similarities: np.ndarray
    judged: Judged
    protocols: tuple[Protocol, ...]
    queries: DescriptorReader
    database: DescriptorReader

    def check(self) -> None:
        """Raises UserError where the parts are not about the same queries and the same database."""
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
        head = self.ranks[:, : self.similarities.shape[1]]
        if head.size and (head.min() < 0 or head.max() >= len(self.database)):
            wrong = head.max() if head.max() >= len(self.database) else head.min()
            raise UserError(
                f"{self.name}: the neighbour lists of {self.first_stage} name database image {wrong}, but the database "
                f"has {len(self.database)} images: the lists belong to another database"
            )

    def first_stage_scores(self) -> dict[str, float]:
        """The figures of the first stage alone, percent by protocol name."""
        return {protocol.name: protocol_score(self.judged, protocol) for protocol in self.protocols}

    def counted(self, protocol: Protocol) -> np.ndarray:
        """bool [Nq]: the queries that enter the figure of a protocol."""
        counted = np.zeros(len(self.ranks), bool)
        counted[slice(*protocol.part)] = True
        return counted & (find_hits(self.judged, protocol.ok, protocol.junk).positives > 0)

    def junk_columns(self, protocol: Protocol, k: int) -> np.ndarray:
        """bool [Nq, W]: junk of the protocol in the columns that can reach a shortlist of k."""
        most = int(find_hits(self.judged, protocol.junk, ()).positives.max(initial=0))
        return self.judged.columns_of(protocol.junk, min(self.ranks.shape[1], k + most))

    def needed_pairs(self, k: int) -> np.ndarray:
        """bool [Nq, C]: the pairs that some protocol's shortlist of k needs a score for; the union is scored once.

        Raises UserError when the first stage lists fewer than k images.
        """
        junk_of = {protocol: self.junk_columns(protocol, k) for protocol in self.protocols}
        needed = np.zeros((len(self.ranks), max(junk.shape[1] for junk in junk_of.values())), bool)
        for protocol, junk in junk_of.items():
            columns = shortlist_columns(self.ranks.shape[1], len(self.ranks), k, junk)[:, :k]
            chosen = np.zeros_like(needed)
            np.put_along_axis(chosen, columns, True, axis=1)
            chosen[:, : junk.shape[1]] &= ~junk
            needed |= chosen & self.counted(protocol)[:, None]
        return needed[:, : int(np.flatnonzero(needed.any(axis=0)).max(initial=-1)) + 1]
