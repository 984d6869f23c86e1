"""Training curves: loss, pair accuracy and validation mAP over the steps, all runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ames_jax.report.figures import draw_level, new_figure, plain_axes
from ames_jax.training.log import read_history

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True)
class Curve:
    """Values over optimizer steps; both of one length, steps rising."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class TrainingRun:
    """One run: name; loss and accuracy (share of pairs on the right side, 0..1) per step; validation mAP in percent."""

    name: str
    loss: Curve
    accuracy: Curve
    validation: Curve


def training_run(name: str, directory: Path) -> TrainingRun | None:
    """The curves of a run from its logs, or None where nothing was logged."""
    lines = read_history(directory)
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation_map" in line]

    def curve(some: list[dict], key: str) -> Curve:
        some = [line for line in some if key in line]
        return Curve([line["step"] for line in some], [line[key] for line in some])

    if not steps:
        return None
    return TrainingRun(name, curve(steps, "loss"), curve(steps, "accuracy"), curve(checks, "validation_map"))


def draw_training(
    data_set: str,
    runs: Sequence[TrainingRun],
    path: str | Path,
    base_line: float | None = None,
    ceiling: float | None = None,
) -> None:
    """Writes a PNG with three panels. base_line: validation mAP (%) of the first stage; ceiling: of its shortlist.

    Loss and accuracy are drawn faint as they are and strong as a running mean over a tenth of the values.
    """
    with new_figure(path, 13, 3.8) as figure:
        figure.get_layout_engine().set(w_pad=0.12)
        panels = figure.subplots(1, 3)
        for run, color in zip(runs, COLORS, strict=False):
            for panel, curve in zip(panels[:2], (run.loss, run.accuracy), strict=True):
                panel.plot(curve.steps, curve.values, color=color, alpha=0.2, linewidth=0.8)
                panel.plot(curve.steps, _running_mean(curve.values), color=color, linewidth=1.6, label=run.name)
            panels[2].plot(
                run.validation.steps, run.validation.values, color=color, marker="o", markersize=4, label=run.name
            )
        for level, text, line in ((base_line, "first stage alone", "-"), (ceiling, "ceiling of the shortlist", ":")):
            if level is not None:
                draw_level(panels[2], level, text, line)
        labels = ("loss", "accuracy on training pairs", "validation mAP (%)")
        for panel, label in zip(panels, labels, strict=True):
            plain_axes(panel, "optimizer step", label)
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[0].yaxis.set_minor_locator(NullLocator())
        panels[0].legend(frameon=False, loc="upper right")
        figure.suptitle(f"Training on {data_set}", x=0.01, ha="left")


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """Mean over a tenth of the values (at least 5) around each one, fewer at the ends."""
    values = np.asarray(values, float)
    half = max(2, len(values) // 20)
    total = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)
