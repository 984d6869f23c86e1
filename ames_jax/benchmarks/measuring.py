"""Memory and time of this process. Standard library alone: the PyTorch side imports it too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path


def reset_peak() -> None:
    """Forgets the peak so far, where the system can (Linux); elsewhere the peak is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory of this process since `reset_peak`, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_times(stream: Iterator, items: int, step_seconds: float) -> tuple[float, float]:
    """Seconds of `items` items after a first one, and the share of waiting in as many more with a step after each."""
    next(stream)
    start = time.perf_counter()
    for _ in range(items):
        next(stream)
    seconds = time.perf_counter() - start
    waited, start = 0.0, time.perf_counter()
    for _ in range(items):
        asked = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - asked
        time.sleep(step_seconds)
    return seconds, waited / (time.perf_counter() - start)
