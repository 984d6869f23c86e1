"""The findings of a check: facts, and problems with what to do about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ames_jax.runtime.errors import UserError


@dataclasses.dataclass
class Report:
    """Lines to print: `lines` states facts, `problems` says what is wrong and what to do."""

    lines: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def line(self, text: str) -> None:
        """Adds a fact."""
        self.lines.append(text)

    def problem(self, path: Path, text: str) -> None:
        """Adds a problem of a file, on one line."""
        self.problems.append(" ".join(f"{path}: {text}".split()))

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """In this block, a UserError becomes a problem."""
        try:
            yield
        except UserError as error:
            text = " ".join(str(error).split())
            if text not in self.problems:  # several checks may meet the same damaged file
                self.problems.append(text)

    def __str__(self) -> str:
        problems = [f"PROBLEM {text}" for text in self.problems]
        return "\n".join([*self.lines, *problems, f"{len(problems)} problem(s)" if problems else "no problems"])


class Faults:
    """The images (or lists of images) that have a fault: for each kind how many, and the first."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.first: dict[str, int] = {}

    def add(self, kind: str, rows: np.ndarray, faulty: np.ndarray) -> None:
        """Counts those of `rows`, int [n], ascending, that are `faulty`, bool [n]."""
        if faulty.any():
            self.first.setdefault(kind, int(rows[np.argmax(faulty)]))
            self.count[kind] = self.count.get(kind, 0) + int(np.count_nonzero(faulty))

    def tell(self, report: Report, path: Path, advice: Mapping[str, str], subject: str = "{} images") -> None:
        """Adds a problem for each kind that was found, with its advice, in the order of these."""
        for kind in (kind for kind in advice if kind in self.count):
            told = f"{subject.format(self.count[kind])}, the first of them {self.first[kind]}, {advice[kind]}"
            report.problem(path, told)
