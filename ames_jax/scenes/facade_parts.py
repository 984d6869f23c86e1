"""Paints the parts of a facade on canvases: wall, roof, floors of windows, ornaments, towers, porch."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from ames_jax.scenes.drawing import Canvas, Patch, Rng
from ames_jax.scenes.elements import Library, WindowStyle, draw_lettering, draw_ornament
from ames_jax.scenes.plan import Plan
from ames_jax.scenes.windows import draw_window


def paint_wall(canvas: Canvas, plan: Plan) -> None:
    """The wall from roof to ground, in its texture."""
    canvas.box(plan.left, plan.top, plan.right, plan.ground, plan.texture)


def paint_roof(canvas: Canvas, plan: Plan, rng: Rng, library: Library) -> None:
    """One of pediment, dome, crenellation, mansard with dormers, balustrade, flat."""
    left, right, top, middle = plan.left, plan.right, plan.top, plan.middle
    kind = int(rng.integers(0, 6))
    if kind == 0:
        rise = int(rng.integers(40, 75))
        canvas.polygon([[left - 10, top], [middle, top - rise], [right + 10, top]], plan.texture * 0.85)
        patch = library.ornament(rng, int(min(44, rise * 0.6)))
        canvas.paste(patch, middle - patch.shape[1] / 2, top - rise * 0.42 - patch.shape[0] / 4, plan.tint)
    elif kind == 1:
        _dome(canvas, plan, int(rng.integers(40, 70)))
    elif kind == 2:
        step = int(rng.integers(10, 18))
        for x in range(left, right - step, 2 * step):
            canvas.box(x, top - step, x + step, top, plan.texture)
    elif kind == 3:
        canvas.polygon([[left - 8, top], [left + 25, top - 45], [right - 25, top - 45], [right + 8, top]], plan.dark)
        dormers, patch = int(rng.integers(2, 6)), draw_window(library.window(rng), 16, 22)
        for x in np.linspace(left + 40, right - 40, dormers):
            canvas.paste(patch, x - patch.shape[1] / 2, top - 42, plan.tint)
    elif kind == 4:
        for x in range(left, right - 4, 9):
            canvas.box(x, top - 16, x + 4, top, plan.texture)
        canvas.box(left, top - 19, right, top - 15, plan.trim)


def _dome(canvas: Canvas, plan: Plan, radius: int) -> None:
    middle, top, height = plan.middle, plan.top, int(radius * 1.1)
    angles = np.linspace(np.pi, 2 * np.pi, 32)
    rim = np.stack([middle + radius * np.cos(angles), top + height * np.sin(angles)], 1)
    canvas.polygon(rim, plan.dark * 1.3)
    rib = tuple(float(v) for v in plan.dark * 0.7)
    for i in range(-3, 4):
        start, end = (180, 270) if i < 0 else (270, 360)
        axes = abs(i) * radius // 4 + 1, height
        cv2.ellipse(canvas.image, (middle, top), axes, 0, start, end, rib, 1, cv2.LINE_AA)
    canvas.box(middle - 5, max(0, top - height - 18), middle + 5, top - height + 3, plan.texture)


def paint_floors(canvas: Canvas, plan: Plan, rng: Rng, library: Library) -> None:
    """Rows of windows under cornices; the first row may carry a frieze of ornaments."""
    pattern = int(rng.integers(0, 3))  # all windows alike, floors alternate, columns alternate
    for floor in range(plan.floors):
        top = plan.top + floor * plan.floor_height
        _cornice(canvas, plan, rng, top)
        head, height = top + 10, plan.floor_height - 14
        if floor == 0 and rng.random() < 0.5:
            size = _frieze(canvas, plan, rng, library, top)
            head, height = top + size + 8, plan.floor_height - size - 10
        row = plan.main_window if floor % 2 == 0 or pattern != 1 else plan.other_window
        styles = [plan.other_window if pattern == 2 and c % 2 else row for c in range(plan.columns)]
        skip_middle = floor == plan.floors - 1  # the porch stands there
        _window_row(canvas, plan, rng, library, styles, head, height, skip_middle)
    _door(canvas, plan, rng, library)


def _door(canvas: Canvas, plan: Plan, rng: Rng, library: Library) -> None:
    style = replace(library.window(rng), bars_across=1, balcony=False, sill=False)
    height = plan.floor_height * 0.66
    patch = draw_window(style, min(40, height * 0.6), height)
    y = plan.ground - patch.shape[0] + patch.shape[1] * 0.08
    canvas.paste(patch, plan.middle - patch.shape[1] / 2, y, plan.tint * rng.uniform(0.6, 1))


def _cornice(canvas: Canvas, plan: Plan, rng: Rng, top: float) -> None:
    if rng.random() >= 0.8:
        return
    top, thick = int(top), int(rng.integers(3, 7))
    canvas.box(plan.left, top, plan.right, top + thick, plan.trim)
    canvas.box(plan.left, top + thick, plan.right, top + thick + 2, plan.dark)
    if rng.random() < 0.35:
        for x in range(plan.left, plan.right - 4, 8):
            canvas.box(x, top + thick + 1, x + 4, top + thick + 5, plan.trim)


def _frieze(canvas: Canvas, plan: Plan, rng: Rng, library: Library, top: float) -> int:
    size = int(rng.integers(16, 24))
    patches = [library.ornament(rng, size) for _ in range(int(rng.integers(1, 4)))]
    for i in range(int((plan.right - plan.left - 2 * plan.pad) // (size * 1.6))):
        canvas.paste(patches[i % len(patches)], plan.left + plan.pad + i * size * 1.6 + 4, top + 8, plan.tint)
    return size


def _window_row(
    canvas: Canvas,
    plan: Plan,
    rng: Rng,
    library: Library,
    styles: list[WindowStyle],
    top: float,
    height: float,
    skip_middle: bool,
) -> None:
    spacing = (plan.right - plan.left - 2 * plan.pad) / plan.columns
    window_height = height * 0.62
    drawn: dict[WindowStyle, Patch] = {}
    for column, style in enumerate(styles):
        if skip_middle and abs(column - (plan.columns - 1) / 2) < 0.6:
            continue
        tint = plan.tint * rng.uniform(0.85, 1.08)
        if rng.random() < 0.06:
            patch = library.ornament(rng, int(np.clip(min(spacing * 0.7, height * 0.6), 16, 56)))
        else:
            if style not in drawn:
                drawn[style] = draw_window(style, min(spacing * 0.5, window_height / style.aspect), window_height)
            patch = drawn[style]
        x = plan.left + plan.pad + (column + 0.5) * spacing - patch.shape[1] / 2
        canvas.paste(patch, x, top + height / 2 - patch.shape[0] / 2, tint)


def paint_ornaments(canvas: Canvas, plan: Plan, rng: Rng, library: Library) -> None:
    """Medallions from the library, sometimes a large one of its own and an inscription."""
    for _ in range(int(rng.integers(2, 6))):
        size = int(rng.integers(22, 52))
        x = rng.uniform(plan.left + plan.pad, plan.right - plan.pad - size)
        y = rng.uniform(plan.top, plan.ground - size - 20)
        canvas.paste(library.ornament(rng, size), x, y, plan.tint * rng.uniform(0.8, 1.1))
    if rng.random() < 0.4:
        rose = draw_ornament(rng, 72)
        y = plan.top + rng.uniform(0, 0.4) * (plan.ground - plan.top)
        canvas.paste(rose, plan.middle - 36, y, plan.tint * rng.uniform(0.8, 1.1))
    if rng.random() < 0.45:
        letters, height = int(rng.integers(4, 10)), int(rng.integers(10, 20))
        ink = draw_lettering(rng, letters, height)
        x = int(rng.uniform(plan.left + 5, max(plan.left + 6, plan.right - ink.shape[1] - 5)))
        y = int(plan.top + rng.integers(20, 140))
        ground, letter = (plan.dark, plan.trim) if rng.random() < 0.5 else (plan.trim, plan.dark * 0.5)
        canvas.box(x - 4, y - 5, x + ink.shape[1] + 4, y + ink.shape[0] + 4, ground)
        canvas.paste(Patch(np.full_like(ink, 255), ink), x, y, letter / 255)


def paint_towers(canvas: Canvas, plan: Plan, rng: Rng, library: Library) -> None:
    """Towers at the ends of the facade, with pointed roofs and a column of windows."""
    if not plan.tower_width:
        return
    style, spire = library.window(rng), int(rng.integers(20, 60))
    width = plan.tower_width * 0.4
    patch = draw_window(style, width, width * min(1.7, style.aspect))
    ornament = library.ornament(rng, int(plan.tower_width * 0.6))
    levels, top = int(rng.integers(1, 4)), plan.tower_top
    for left, right in plan.towers:
        canvas.box(left, top, right, plan.ground, plan.texture * 0.96)
        for x in (left, right - 2):
            canvas.box(x, top, x + 2, plan.ground, plan.dark)
        canvas.polygon([[left - 5, top], [(left + right) // 2, max(0, top - spire)], [right + 5, top]], plan.dark)
        centre = (left + right) / 2
        for level in range(levels):
            y = top + 12 + level * (plan.ground - top) * 0.3
            canvas.paste(patch, centre - patch.shape[1] / 2, y, plan.tint)
        canvas.paste(ornament, centre - ornament.shape[1] / 2, plan.ground - (plan.ground - top) * 0.2, plan.tint)


def paint_porch(canvas: Canvas, plan: Plan, rng: Rng, library: Library) -> None:
    """Columns before the door that carry a slab: the part that moves most against the wall."""
    (left, right), top, ground = plan.porch_roof, plan.porch_top, plan.ground
    canvas.box(left, top, right, top + plan.porch_slab, plan.trim)
    canvas.box(left, top + plan.porch_slab, right, top + plan.porch_slab + 2, plan.dark)
    if rng.random() < 0.5:
        rise = int(rng.integers(14, 36))
        canvas.polygon([[left - 4, top], [(left + right) // 2, top - rise], [right + 4, top]], plan.texture * 0.9)
        patch = library.ornament(rng, max(14, int(rise * 0.8)))
        canvas.paste(patch, (left + right) / 2 - patch.shape[1] / 2, top - patch.shape[0], plan.tint)
    shaft = int(rng.integers(7, 13))
    shade = (np.sin(np.linspace(0.2, 2.9, shaft)) * 1.1)[:, None]
    for x in np.linspace(left + 3, right - shaft - 3, int(rng.integers(2, 6))).astype(int):
        for i in range(shaft):
            canvas.box(x + i, top + plan.porch_slab + 2, x + i + 1, ground, plan.trim * shade[i])
        canvas.box(x - 3, top + plan.porch_slab + 2, x + shaft + 3, top + plan.porch_slab + 8, plan.trim)
        canvas.box(x - 3, ground - 7, x + shaft + 3, ground, plan.trim * 0.8)
