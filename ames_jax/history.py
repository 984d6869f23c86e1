"""What a run writes down while it trains: a line of JSON a logged step, and TensorBoard event files."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class History:
    """`metrics.jsonl` and TensorBoard files in one directory; a resumed run drops what lies past its checkpoint."""

    def __init__(self, directory: Path, resume_step: int):
        self._path = directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_history(directory) if line["step"] <= resume_step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        # Event files only grow; the purge step tells TensorBoard to forget what a killed run logged past its checkpoint.
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs float values after `step` steps."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both files."""
        self._file.close()
        self._writer.close()


def read_history(directory: Path) -> list[dict[str, float]]:
    """The logged lines, oldest first; a line cut short by a kill is left out."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
