"""The ground that all plots share: a canvas without a display, plain axes, and saving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#333333"
FAINT = "#D9D9D9"


@contextlib.contextmanager
def new_figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` × `height` inches that is written to `path` (PNG) when the block ends without an error.

    Nothing global is touched: no pyplot state, no display, the user's own matplotlib settings stay as they are.
    """
    settings = {"font.size": 10, "axes.titlesize": 11, "font.family": "DejaVu Sans", "text.color": INK}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, facecolor="white")


def draw_level(axes: Axes, height: float, text: str, line: str, **options: object) -> None:
    """A horizontal line across the axes, with its name and height at the right end."""
    axes.axhline(height, color=INK, linewidth=1, linestyle=line)
    axes.annotate(
        f"{text}, {height:.1f}", (1, height), (-2, 3), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
        ha="right", fontsize=8, **options,
    )  # fmt: skip


def plain_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Left and bottom spine, faint horizontal grid, labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
