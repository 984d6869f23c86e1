"""The number of processor cores that this process may use. Without JAX, so that rendering processes start fast."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores of the process's affinity where the system tells, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
