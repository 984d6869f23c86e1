"""The log of a training run: figures in `metrics.jsonl` and TensorBoard files, and how far the run is on the console."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from etils import epy

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file
from ames_jax.runtime.paths import is_remote
from ames_jax.runtime.processes import is_lead
from ames_jax.runtime.progress import Progress, write

with epy.lazy_imports():  # imports PyTorch where that is installed, which takes seconds
    import tensorboardX
    from tensorboardX.proto import event_pb2, summary_pb2

T = TypeVar("T")
HISTORY_FILE = "metrics.jsonl"
# What is logged reaches the disk before each checkpoint, and at least this often; in a bucket files are then written anew.
FLUSH_SECONDS = 60


class TrainingLog:
    """As a context: takes the figures of a run's steps and validations.

    All processes make one; the lead process writes and prints.

    Args:
      directory: of the run.
      label: the run in what is printed ("teacher", "student", "detector").
      first: steps that are done already by the checkpoint that the run goes on from, None where there is none; what the
        files hold past them is dropped.
      steps: of the whole run.
      counts: what one step works on over all processes, e.g. {"images": 48}; each becomes a figure `images_per_second`.
    """

    def __init__(self, directory: Path, label: str, first: int | None, steps: int, counts: Mapping[str, int]) -> None:
        self._label, self._steps, self._counts = label, steps, counts
        self._history = History(directory, first) if is_lead() else None
        self._progress = Progress(label, total=steps, unit="steps", done=first or 0)
        self._since, self._step, self._waited = time.perf_counter(), first or 0, 0.0

    def __enter__(self) -> TrainingLog:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)
        if self._history is not None:
            self._history.close()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time that each takes to come counts as waiting for data."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def flush(self) -> None:
        """Brings what was logged to the disk: before a checkpoint, so that a run which goes on from it misses nothing."""
        if self._history is not None:
            self._history.flush()

    def step(self) -> None:
        """Counts one more step as done."""
        self._progress.update()

    def figures(self, done: int, values: Mapping[str, float]) -> None:
        """Logs the figures of the last of `done` steps, and with them the rates since the last call."""
        values = {**values, **self._rates(done)}
        self._write(done, values)
        waiting = (
            f"{values['images_per_second']:.0f} images/s, {100 * values['waiting_for_data']:.0f}% waiting for data"
        )
        self._progress.note(f"loss {values['loss']:.3f}, accuracy {values['accuracy']:.3f}, {waiting}")

    @contextlib.contextmanager
    def validation(self, done: int) -> Iterator[dict[str, float]]:
        """A block that validates after `done` steps and fills in the figures; its time counts for no rate."""
        start, values = time.perf_counter(), {}
        try:
            yield values
        finally:
            self._since += time.perf_counter() - start
        self._write(done, {f"validation_{name}": value for name, value in values.items()})
        shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        write(f"{self._label} step {done}/{self._steps}: validation {shown}")

    def _rates(self, done: int) -> dict[str, float]:
        """Steps and counted things per second, the share of time spent waiting for data, and the most memory in use on a
        device so far (bytes; where the device tells)."""
        now = time.perf_counter()
        seconds = now - self._since
        rate, waited = (done - self._step) / seconds, self._waited / seconds
        self._since, self._step, self._waited = now, done, 0.0
        rates = {f"{name}_per_second": count * rate for name, count in self._counts.items()}
        memory = jax.local_devices()[0].memory_stats()
        device = {"device_memory": float(memory["peak_bytes_in_use"])} if memory else {}
        return {"steps_per_second": rate, **rates, "waiting_for_data": waited, **device}

    def _write(self, done: int, values: Mapping[str, float]) -> None:
        if self._history is not None:
            self._history.write(done, values)


class History:
    """`metrics.jsonl` and TensorBoard files in one directory; what lies past `first` steps is dropped, with None all of it."""

    def __init__(self, directory: Path, first: int | None) -> None:
        self._path = directory / HISTORY_FILE
        directory.mkdir(parents=True, exist_ok=True)
        # Without a checkpoint a run begins anew, and validates before its first step again.
        self._lines = [line for line in read_history(directory) if first is not None and line["step"] <= first]
        self._replace()
        self._flushed = time.monotonic()
        self._file = None if is_remote(directory) else self._path.open("a")
        # TensorBoardX's usual writer keeps events in a queue, which a kill loses; this one is on disk after each flush.
        (directory / "tensorboard").mkdir(parents=True, exist_ok=True)
        # Its file's name holds the second; two runs in one second are told apart by their processes.
        self._events = tensorboardX.event_file_writer.EventsWriter(
            str(directory / "tensorboard" / "events"), filename_suffix=f".{os.getpid()}"
        )
        # Event files only grow; this tells TensorBoard to forget what a killed run logged past its checkpoint.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add_event(0 if first is None else first + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values after `step` steps."""
        line = {"step": step, **values}
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        else:
            self._lines.append(line)
        shown = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add_event(step, summary=summary_pb2.Summary(value=shown))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Brings both files to the disk, or to the bucket."""
        if self._file is None:
            self._replace()
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes both files."""
        self.flush()
        if self._file is not None:
            self._file.close()
        self._events.close()

    def _replace(self) -> None:
        write_file(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))

    def _add_event(self, step: int, **content: Any) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def read_history(directory: Path) -> list[dict[str, float]]:
    """The logged lines of a run, oldest first; a line cut short by a kill is left out, and one of other than numbers."""
    path = directory / HISTORY_FILE
    lines = []
    for text in path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            numbers = isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values())
            if numbers and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def trace_steps(text: str) -> tuple[int, int] | None:
    """The steps that `START:STOP` names; "" names none. Raises UserError for anything else."""
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError(f"--config.profile={text}: expected START:STOP, two steps with START below STOP, e.g. 20:30")
    return int(first), int(last)
