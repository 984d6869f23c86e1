"""What a check found: facts, and problems with what to do about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass
class Report:
    """Lines to print: `lines` states facts, `problems` says what is wrong and what to do."""

    lines: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def line(self, text: str) -> None:
        """Adds a fact."""
        self.lines.append(text)

    def problem(self, path: Path | None, text: str) -> None:
        """Adds a problem of a file, on one line."""
        self.problems.append(" ".join((f"{path}: {text}" if path else text).split()))

    def __str__(self) -> str:
        problems = [f"PROBLEM {text}" for text in self.problems]
        return "\n".join([*self.lines, *problems, f"{len(problems)} problem(s)" if problems else "no problems"])
