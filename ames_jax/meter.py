"""What a training run measures of itself: rates, time spent waiting for data, device memory; and a trace on demand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from ames_jax.errors import UserError

T = TypeVar("T")


class Meter:
    """Rates since the last reading; validations and the like are left out (`paused`).

    Args:
      triplets: of a step, over all processes.
    """

    def __init__(self, triplets: int):
        self._triplets = triplets
        self._since, self._step, self._waited = time.perf_counter(), None, 0.0

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
        """Figures since the last reading, at `step`: steps, pairs and images a second over all processes, the share of time
        spent waiting for data, and the most memory used on a device so far (bytes; where the device tells)."""
        now = time.perf_counter()
        steps = step - self._step if self._step is not None else 0
        seconds = now - self._since
        rate, waited = steps / seconds, self._waited / seconds
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
