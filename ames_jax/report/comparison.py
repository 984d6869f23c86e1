"""A comparison of matchers: the one input of the table and of the trade-off plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ames_jax.retrieval.metrics import Protocol
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import Measured

KILOBYTE = 1024
# Colours of Okabe and Ito, which colour-blind readers tell apart; line and marker differ as well.
STYLES = {
    "teacher": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "student": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "kernel on floats": {"color": "#56B4E9", "marker": "^", "linestyle": "--"},
    "kernel on bits": {"color": "#E69F00", "marker": "v", "linestyle": "--"},
}


@dataclass(frozen=True)
class Row:
    """One way to re-rank, measured at several numbers of database descriptors.

    name: as it shall be printed. kind: a key of STYLES, for colour and marker. query_descriptors: Q.
    stored_bytes: database descriptors T → bytes of one image. scores: T → metric in percent, one entry per seed (one
    entry: no spread is shown).
    """

    name: str
    kind: str
    query_descriptors: int
    stored_bytes: Mapping[int, int]
    scores: Mapping[int, Sequence[float]]

    def mean(self, count: int) -> float:
        """Mean over the seeds, percent."""
        return float(np.mean(self.scores[count]))

    def spread(self, count: int) -> float | None:
        """Standard deviation over the seeds (n − 1), percent; None for a single seed."""
        return float(np.std(self.scores[count], ddof=1)) if len(self.scores[count]) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Matchers beside each other on one data set and one first stage.

    data_set: its name, printed everywhere. metric: e.g. "mAP". first_stage: name of the global descriptor or list.
    global_only: metric of the first stage, percent, one entry per seed. shortlist: images re-ranked per query.
    ceiling: recall of that shortlist in percent, what a perfect re-ranking would bring to the top; None if unknown.
    """

    data_set: str
    metric: str
    first_stage: str
    global_only: Sequence[float]
    shortlist: int
    ceiling: float | None
    rows: tuple[Row, ...]

    @property
    def counts(self) -> list[int]:
        """All numbers of database descriptors that any matcher was measured at, ascending."""
        return sorted({count for row in self.rows for count in row.scores})


def compare(data: RetrievalSet, measured: Iterable[Measured], protocol: Protocol) -> Comparison:
    """Measurements on a set, compared in one protocol: one row per matcher and number of query descriptors, in their order."""
    rows: dict[tuple[str, int], Row] = {}
    for found in measured:
        matcher, (queries, count) = found.matcher, found.counts
        row = rows.setdefault((matcher.name, queries), Row(matcher.name, matcher.kind, queries, {}, {}))
        row.stored_bytes[count], row.scores[count] = found.stored_bytes, [found.figures[protocol.name]]
        k = found.setting.k
    metric = protocol.name if protocol.name.startswith(("mAP", "R@")) else f"mAP, {protocol.name}"
    first = [data.figures()[protocol.name]]
    return Comparison(data.name, metric, data.first_stage, first, k, data.ceiling(k, protocol), tuple(rows.values()))


def format_bytes(count: float) -> str:
    """128 → "128 B", 1024 → "1 KB", 12800 → "12.5 KB" (1 KB = 1024 B)."""
    if count < KILOBYTE:
        return f"{count:.0f} B"
    return f"{count / KILOBYTE:.3g} KB"
