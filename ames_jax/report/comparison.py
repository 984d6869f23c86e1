"""What a comparison of methods holds: the one input of the table and of the trade-off plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

KILOBYTE = 1024
# Colours of Okabe and Ito, which colour-blind readers tell apart; line and marker differ as well.
STYLES = {
    "teacher": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "student": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "kernel on floats": {"color": "#56B4E9", "marker": "^", "linestyle": "--"},
    "kernel on bits": {"color": "#E69F00", "marker": "v", "linestyle": "--"},
}


@dataclass(frozen=True)
class Method:
    """One way to re-rank, measured at several numbers of database descriptors.

    name: as it shall be printed. kind: a key of STYLES, for colour and marker. query_descriptors: Q.
    bytes_per_descriptor: stored for one database descriptor. scores: database descriptors T → metric in percent, one
    entry a seed (one entry: no spread is shown).
    """

    name: str
    kind: str
    query_descriptors: int
    bytes_per_descriptor: int
    scores: Mapping[int, Sequence[float]]

    def bytes_per_image(self, count: int) -> int:
        """Bytes of local descriptors stored for one database image at `count` descriptors."""
        return count * self.bytes_per_descriptor

    def mean(self, count: int) -> float:
        """Mean over the seeds, percent."""
        return float(np.mean(self.scores[count]))

    def spread(self, count: int) -> float | None:
        """Standard deviation over the seeds (n − 1), percent; None for a single seed."""
        return float(np.std(self.scores[count], ddof=1)) if len(self.scores[count]) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Methods beside each other on one data set and one first stage.

    data_set: its name, printed everywhere. metric: e.g. "mAP". first_stage: name of the global descriptor or list.
    global_only: metric of the first stage, percent, one entry a seed. shortlist: images re-ranked a query.
    ceiling: recall of that shortlist in percent, what a perfect re-ranking would bring to the top; None if unknown.
    """

    data_set: str
    metric: str
    first_stage: str
    global_only: Sequence[float]
    shortlist: int
    ceiling: float | None
    methods: tuple[Method, ...]

    @property
    def counts(self) -> list[int]:
        """All numbers of database descriptors that any method was measured at, ascending."""
        return sorted({count for method in self.methods for count in method.scores})


def format_bytes(count: float) -> str:
    """128 → "128 B", 1024 → "1 KB", 12800 → "12.5 KB" (1 KB = 1024 B)."""
    if count < KILOBYTE:
        return f"{count:.0f} B"
    return f"{count / KILOBYTE:.3g} KB"
