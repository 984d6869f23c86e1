"""What a training run says on the console, in the lead process: a bar in a terminal, and a line a period."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tqdm import tqdm

from ames_jax.distributed import is_lead

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
