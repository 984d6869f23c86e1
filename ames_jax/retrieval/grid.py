"""The one grid of λ, γ and thresholds: what validation chooses among, in training, evaluation, reports and search."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ames_jax.retrieval.ranking import ensemble
from ames_jax.runtime.errors import UserError

# The release: λ .35 to .85, γ .1 to .8.
LAMBDAS = tuple(step / 10 for step in range(11))
GAMMAS = (0.1, 0.2, 0.4, 0.8, 1.6)
# The match kernel's scores are sums over some tens of descriptors, so its γ spans the straight part of the sigmoid up to
# its saturation: for a small γ the sigmoid is a straight line, and the form of the ensemble does not hold the kernel back.
KERNEL_GAMMAS = (0.01, 0.03, 0.1, 0.3, 1.0)
KERNEL_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


class Counts(NamedTuple):
    """Descriptors that are used of each image: the strongest of a query, and of a database image."""

    query: int
    database: int


@dataclass(frozen=True)
class Grid:
    """The settings of a sweep: every k with every λ and γ, in this order."""

    rerank: tuple[int, ...]
    lam: tuple[float, ...] = LAMBDAS
    gamma: tuple[float, ...] = GAMMAS

    def __post_init__(self) -> None:
        """Raises UserError for a setting that cannot be, before anything is scored."""
        nothing = np.zeros(0)
        for lam, gamma in itertools.product(self.lam, self.gamma):
            ensemble(nothing, nothing, lam, gamma)
        if min(self.rerank) < 1:
            raise UserError(f"rerank={min(self.rerank)}: re-rank at least 1 image per query")
