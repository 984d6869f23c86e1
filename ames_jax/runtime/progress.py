"""Progress of long work: a bar on a terminal, elsewhere a line every few seconds, so that no command is silent for long.

with Progress("scoring", total=len(pairs), unit="pairs") as progress:
    for pair in progress.over(pairs):  # or progress.update(count)
        ...
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from etils import epy
from tqdm import tqdm

with epy.lazy_imports():  # imports JAX, which the processes that render scenes do without
    from ames_jax.runtime import processes

T = TypeVar("T")
# Off a terminal: the time between two lines, and the time before the first. Shorter work prints nothing.
LINE_SECONDS = 10.0
# On a terminal: the clock of the bar moves on with each of these, also while one unit takes long.
BAR_SECONDS = 1.0
# Progresses under way, the outermost first: that one prints lines, which tell of the others as well.
_open: list[Progress] = []


class Progress:
    """As a context: reports on stderr how far some work is, in the lead process alone.

    A line looks like "scoring: 1,200 of 4,800 pairs, 25%, 40.0 pairs/s, 01:30 left". A thread prints it, so that there are
    lines also while one unit takes long; the rate leaves out the first unit, during which programs are compiled.

    Args:
      label: the work.
      total: how many units it has, None where that is unknown.
      unit: what is counted, in the plural.
      done: units that were done before (a run that goes on).
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "items", *, done: int = 0) -> None:
        self._label, self._total, self._unit, self._done, self._quiet = label, total, unit, done, False
        self._note = ""
        self._first: tuple[int, float] | None = None  # units and time when the first unit of this run was done
        self._bar: tqdm | None = None
        self._printed = False

    def __enter__(self) -> Progress:
        self._quiet = not processes.is_lead()
        if self._quiet:
            return self
        self._began, self._closed = time.monotonic(), threading.Event()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total, initial=self._done, desc=self._label, unit=f" {self._unit}", leave=False
            )
        _open.append(self)
        self._thread = threading.Thread(target=self._report, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._quiet:
            return
        self._closed.set()
        self._thread.join()
        _open.remove(self)
        if self._bar is not None:
            self._bar.close()
        elif self._printed and kind is None:
            self._print(self.line(), f"done in {tqdm.format_interval(time.monotonic() - self._began)}")

    def update(self, count: int = 1) -> None:
        """Counts `count` units more as done."""
        self._done += count
        if self._first is None:
            self._first = self._done, time.monotonic()
        if self._bar is not None:
            self._bar.update(count)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; each counts as done when the next one is asked for."""
        for item in items:
            yield item
            self.update()

    def note(self, text: str) -> None:
        """Sets the text at the end of the bar and of every line from now on, such as figures of the last step."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def line(self) -> str:
        """The line that says how far the work is."""
        first, since = self._first or (self._done, 0.0)
        seconds = time.monotonic() - since
        rate = (self._done - first) / seconds if self._done > first and seconds > 0 else 0.0
        total = "" if self._total is None else f" of {self._total:,}"
        parts = [f"{self._label}: {self._done:,}{total} {self._unit}" if self._total or self._done else self._label]
        if self._total:
            parts.append(f"{100 * self._done / self._total:.0f}%")
        if rate:
            parts.append(f"{rate:.{0 if rate >= 100 else 1 if rate >= 1 else 3}f} {self._unit}/s")
        if rate and self._total and self._done < self._total:
            parts.append(f"{tqdm.format_interval((self._total - self._done) / rate)} left")
        return ", ".join([*parts, self._note] if self._note else parts)

    def _report(self) -> None:
        while not self._closed.wait(LINE_SECONDS if self._bar is None else BAR_SECONDS):
            if self._bar is not None:
                self._bar.refresh()
            elif _open[0] is self:
                lines = "; ".join(work.line() for work in list(_open))
                self._print(lines, f"{tqdm.format_interval(time.monotonic() - self._began)} so far")

    def _print(self, line: str, elapsed: str) -> None:
        self._printed = True
        print(f"{line}, {elapsed}", file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Prints a line on stdout, above the bars that are shown, in the lead process alone."""
    if processes.is_lead():
        tqdm.write(text)
