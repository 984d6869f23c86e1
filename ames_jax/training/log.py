"""What a training run says on the console, in the lead process: a bar in a terminal, and a line a period."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import is_remote, write_file
from ames_jax.runtime.processes import is_lead

LINE_SECONDS = 60


class Progress:
    """As a context: the bar of one run, at `first` of `steps`."""

    def __init__(self, label: str, first: int, steps: int):
        self._label, self._steps, self._line_at = label, steps, time.monotonic()
        quiet = None if is_lead() else True
        self._bar = tqdm(total=steps, initial=first, desc=label, unit="step", disable=quiet, smoothing=0.05)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def step(self) -> None:
        """One step more is done."""
        self._bar.update()

    def show(self, values: Mapping[str, float]) -> None:
        """Figures of a step beside the bar."""
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", acc=f"{values['accuracy']:.2f}")

    def line(self, done: int, values: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """A line after `done` steps: with every validation, else at most one in LINE_SECONDS."""
        if not is_lead() or (not validation and time.monotonic() - self._line_at < LINE_SECONDS):
            return
        self._line_at = time.monotonic()
        shown = "".join(f", {name} {value:.3f}" for name, value in (validation or {}).items())
        self._bar.write(
            f"{self._label} step {done}/{self._steps}: loss {values['loss']:.3f}, accuracy {values['accuracy']:.3f}, "
            f"{values['steps_per_second']:.2f} steps/s, {values['images_per_second']:.0f} images/s, "
            f"{100 * values['waiting_for_data']:.0f}% waiting for data" + (f"; validation{shown[1:]}" if shown else "")
        )


T = TypeVar("T")


class Meter:
    """Rates since the last reading; validations and the like are left out (`paused`).

    Args:
      triplets: of a step, over all processes.
      first: the step that comes first.
    """

    def __init__(self, triplets: int, first: int):
        self._triplets = triplets
        self._since, self._step, self._waited = time.perf_counter(), first - 1, 0.0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time that each takes to come is counted as waiting for data."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def read(self, step: int) -> dict[str, float]:
        """Figures since the last reading, after `step`: steps, pairs and images a second over all processes, the share of time
        spent waiting for data, and the most memory used on a device so far (bytes; where the device tells)."""
        now = time.perf_counter()
        seconds = now - self._since
        rate, waited = (step - self._step) / seconds, self._waited / seconds
        self._since, self._step, self._waited = now, step, 0.0
        figures = {
            "steps_per_second": rate, "pairs_per_second": 2 * self._triplets * rate,
            "images_per_second": 3 * self._triplets * rate, "waiting_for_data": waited,
        }  # fmt: skip
        memory = jax.local_devices()[0].memory_stats()
        return figures if not memory else {**figures, "device_memory": float(memory["peak_bytes_in_use"])}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this block counts for nothing."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start


class Trace:
    """Records the steps from `first` until before `last` with JAX's profiler, for TensorBoard's profile page or Perfetto."""

    def __init__(self, directory: Path, steps: tuple[int, int] | None):
        self._directory, self._steps, self._running = directory, steps, False

    def before_step(self, step: int, state: Any) -> None:
        """Starts or ends the recording; `state` is what the steps before have computed, or are about to."""
        if self._steps is None:
            return
        if step == self._steps[0]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step == self._steps[1]:
            self.close(state)

    def close(self, state: Any) -> None:
        """Ends a recording that is under way, when `state` is there."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False


def trace_steps(text: str) -> tuple[int, int] | None:
    """The steps that `START:STOP` names; "" names none. Raises UserError for anything else."""
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError(f"--config.profile={text}: expected START:STOP, two steps with START below STOP, e.g. 20:30")
    return int(first), int(last)


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
        write_file(self._path, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
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
