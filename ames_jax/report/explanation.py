"""A picture of an explanation: two images side by side, their correspondences, and the descriptors that the score reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch

from ames_jax.index.explaining import Explanation
from ames_jax.report.figures import INK, new_figure

SIDE = 5.2  # inches of an image's longer side
ATTENTION_COLOR, LINES = "#E69F00", "viridis"
LARGEST_CIRCLE = 260  # points², of the descriptor that the matching token attends to most
LEGENDS = {
    "ames": "lines: descriptors that attend to each other, brighter is stronger   circles: the matching token's attention",
    "elvis": "lines: what the transport plan moves, brighter is more   circles: the largest share of a descriptor, its vote",
    "matching": "lines: descriptors that match, brighter is nearer   circles: how far the best partner is above the threshold",
}


def draw_explanation(explained: Explanation, path: str | Path, lines: int = 30) -> None:
    """Writes a picture (.png or .jpg): query left, image right, the `lines` strongest correspondences, and circles whose areas
    are the matching token's attention (of ELViS: the largest shares)."""
    shapes = [picture.shape[:2] for picture in (explained.query_image, explained.image)]
    sizes = [(SIDE * w / max(h, w), SIDE * h / max(h, w)) for h, w in shapes]
    width, height = sizes[0][0] + sizes[1][0] + 0.5, max(size[1] for size in sizes) + 1.1
    largest = max(explained.query_attention.max(initial=0), explained.attention.max(initial=0), 1e-12)
    hit, lam = explained.hit, explained.lam
    local = 1 / (1 + np.exp(-explained.gamma * hit.logit))
    title = (
        f"score {hit.score:.3f} = {lam:g} · global {hit.global_similarity:.3f} + {1 - lam:g} · local {local:.3f}   "
        f"(logit {hit.logit:.2f})"
    )
    with new_figure(path, max(width, 7.5), height) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        left, right = figure.subplots(1, 2, width_ratios=[size[0] for size in sizes])
        for axes, picture, at, weights, name in (
            (left, explained.query_image, explained.query_xy, explained.query_attention, explained.query),
            (right, explained.image, explained.xy, explained.attention, hit.id),
        ):
            _show(axes, picture, name)
            areas = LARGEST_CIRCLE * weights / largest
            axes.scatter(
                *_pixels(at, picture).T, s=areas, facecolors="none", edgecolors=ATTENTION_COLOR, linewidths=1.4
            )
        pairs = explained.pairs[:lines]
        start = _pixels(explained.query_xy[pairs[:, 0]], explained.query_image)
        _lines(left, right, start, _pixels(explained.xy[pairs[:, 1]], explained.image), explained.strengths[:lines])
        figure.supxlabel(LEGENDS[explained.kind], fontsize=8, color=INK, x=0.01, ha="left")


def _pixels(xy: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return xy * [picture.shape[1], picture.shape[0]] - 0.5


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    # Pale, so that lines and circles stand out on any picture.
    axes.imshow(255 - (255 - picture.astype(np.uint16)) * 7 // 10)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9, color=INK)
    axes.spines[:].set_visible(False)


def _lines(left: Axes, right: Axes, start: np.ndarray, end: np.ndarray, strengths: np.ndarray) -> None:
    """Draws the strongest last, on top."""
    relative = strengths / max(strengths.max(initial=0), 1e-12)
    for i in np.argsort(relative, kind="stable"):
        line = ConnectionPatch(
            start[i],
            end[i],
            left.transData,
            right.transData,
            color=colormaps[LINES](relative[i]),
            linewidth=0.8 + 1.2 * relative[i],
            alpha=0.2 + 0.75 * relative[i],
        )
        left.figure.add_artist(line)
