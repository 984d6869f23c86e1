"""What a run writes down while it trains: a line of JSON a logged step, and TensorBoard event files."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tensorboardX import SummaryWriter

from ames_jax.paths import is_remote, write_whole

BUCKET_SECONDS = 60


class History:
    """`metrics.jsonl` and TensorBoard files in one directory; a resumed run drops what lies past its checkpoint.

    In a bucket, where files cannot grow, `metrics.jsonl` is written again every `BUCKET_SECONDS`.
    """

    def __init__(self, directory: Path, resume_step: int):
        self._path = directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        self._lines = [line for line in read_history(directory) if line["step"] <= resume_step]
        self._replace()
        self._file = None if is_remote(directory) else self._path.open("a")
        # Event files only grow; the purge step tells TensorBoard to forget what a killed run logged past its checkpoint.
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs float values after `step` steps."""
        line = {"step": step, **values}
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        else:
            self._lines.append(line)
            if time.monotonic() - self._written > BUCKET_SECONDS:
                self._replace()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both files."""
        if self._file is not None:
            self._file.close()
        else:
            self._replace()
        self._writer.close()

    def _replace(self) -> None:
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
        self._written = time.monotonic()


class NoHistory:
    """Stands where a process other than the lead one would log."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


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
