"""Working processes: how many cores there are for them, and their end. Without JAX, so that they start fast."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time

from ames_jax.runtime.errors import UserError


def usable_cores() -> int:
    """Cores of the process's affinity where the system tells, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def end_with_parent() -> None:
    """Called in a working process: ends it within a second of its parent, which may have been killed, also before the call."""
    number, parent = os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == number and (parent is None or parent.is_alive()):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def refuse_fork(process: int, name: str) -> None:
    """Raises UserError in a forked child of the process that opened something: JAX's threads are not in the child."""
    if os.getpid() != process:
        raise UserError(
            f"{name} was opened before this process was forked, and would hang: open it in here, or start processes with "
            'multiprocessing.get_context("spawn")'
        )
