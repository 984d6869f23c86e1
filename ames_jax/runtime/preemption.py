"""SIGTERM (maintenance, a spot machine taken back): heard between steps, by all processes at the same step."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

# JAX's agreement between processes wants numbers that rise as long as a process lives, over all its training runs.
_POINTS = itertools.count()


STOPPED_EARLY = 75  # exit code: saved after SIGTERM, run the same command again to go on


class StoppedEarly(Exception):
    """SIGTERM arrived and the state was saved; the same command goes on from there."""


class Interrupted(Exception):
    """SIGTERM arrived in a stretch that may be left at once."""


class StopRequests:
    """As a context: SIGTERM no longer ends the process but is noted.

    One process listens by itself. Many use JAX's preemption service, which has listened since `jax.distributed` started:
    a notice to any process makes all of them stop after the same step.
    """

    def __init__(self) -> None:
        self._noted, self._leave_at_once = False, False
        self._alone = jax.process_count() == 1

    def __enter__(self) -> StopRequests:
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def after_step(self) -> bool:
        """True where training stops here, the same answer in every process; all of them call it once per step."""
        return self._noted if self._alone else multihost_utils.reached_preemption_sync_point(next(_POINTS))

    @contextlib.contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """A stretch that may take long and can be done again: one process raises Interrupted in it; many go through."""
        if self._noted:
            raise Interrupted
        self._leave_at_once = True
        try:
            yield
        finally:
            self._leave_at_once = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = True
        if self._leave_at_once:
            raise Interrupted
