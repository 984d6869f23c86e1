"""A landmark: a facade of wall, roof, windows and ornaments, with towers and a porch that stand before it."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from ames_jax.scenes.drawing import Canvas, Patch, Rng, Sprite
from ames_jax.scenes.elements import Library, WindowStyle, draw_lettering, draw_ornament, draw_wall, draw_window
from ames_jax.scenes.settings import CANVAS_HEIGHT, CANVAS_WIDTH

# Blue, green, red of common walls: limestone, sandstone, brick, ochre, granite, white, pink plaster, slate, terracotta.
WALLS = np.array(
    [
        (170, 195, 205), (130, 165, 190), (75, 90, 145), (100, 160, 200), (140, 142, 145),
        (205, 212, 215), (150, 160, 205), (130, 120, 110), (95, 125, 175),
    ],
    np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """A side wall, seen when the view is oblique: the edge x from top to bottom, from `back` to `front` depth."""

    x: float
    top: float
    bottom: float
    back: float
    front: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Plane:
    """One flat part of a landmark, `depth` canvas pixels before the facade; glass uint8 [h, w] can be lit at night."""

    sprite: Sprite
    depth: float
    sides: tuple[Side, ...]
    glass: np.ndarray


@dataclass(frozen=True)
class Landmark:
    """Planes from the back to the front; `ground` is the canvas row of the street."""

    planes: tuple[Plane, ...]
    ground: float
    left: float
    right: float


def build_landmark(rng: Rng, library: Library) -> Landmark:
    """Draws a landmark; the same generator state gives the same pixels."""
    facade = Facade(rng, library)
    left, right, ground = facade.left, facade.right, facade.ground
    wall, towers, porch = facade.paint_house(Canvas()), facade.paint_towers(Canvas()), facade.paint_porch(Canvas())

    def plane(canvas: Canvas, depth: float, *edges: tuple[float, float, float, float, float]) -> Plane:
        sides = tuple(Side(*edge, facade.side_colour) for edge in edges)
        return Plane(canvas.sprite(), depth, sides, (canvas.glass * 255).astype(np.uint8))

    thickness = rng.uniform(90, 220)
    planes = [plane(wall, 0, *((x, facade.top, ground, -thickness, 0) for x in (left, right)))]
    if facade.tower_width:
        depth, top = rng.uniform(25, 60), facade.tower_top
        planes.append(plane(towers, depth, *((x, top, ground, 0, depth) for span in facade.towers for x in span)))
    depth, top = rng.uniform(25, 70), facade.porch_top
    bottom = min(ground, top + facade.porch_slab)
    planes.append(plane(porch, depth, *((x, top, bottom, 0, depth) for x in facade.porch_roof)))
    return Landmark(tuple(planes), ground, left, right)


class Facade:
    """One facade: its proportions and materials, drawn before anything is painted, and the painting of its parts.

    Positions are canvas pixels; colours float32 BGR [3]; texture float32 [H, W, 3] of the wall material.
    """

    def __init__(self, rng: Rng, library: Library) -> None:
        self.rng, self._window, self._ornament = rng, partial(library.window, rng), partial(library.ornament, rng)
        colour = WALLS[int(rng.integers(len(WALLS)))] * rng.uniform(0.7, 1.1) * rng.uniform(0.93, 1.07, 3)
        colour = np.clip(colour, 30, 235)
        self.left, self.right = int(rng.integers(30, 90)), int(CANVAS_WIDTH - rng.integers(30, 90))
        self.middle = (self.left + self.right) // 2
        self.top, self.ground = int(rng.integers(90, 150)), CANVAS_HEIGHT - 12
        self.floors, self.columns = int(rng.integers(2, 5)), int(rng.integers(3, 8))
        self.floor_height = (self.ground - self.top) / self.floors
        self.towers, self.tower_width, tower_rise = _towers(rng, self.left, self.right)
        self.tower_top = max(8, self.top - tower_rise)
        at_corner = self.towers and self.towers[0][0] == self.left
        self.pad = self.tower_width + 6 if at_corner else 10  # width at each end that is left to corner towers
        porch_width = int(rng.integers(60, max(61, min(200, self.right - self.left - 2 * self.tower_width))))
        self.porch_roof = (self.middle - porch_width // 2, self.middle + porch_width // 2)
        self.texture = draw_wall(rng, colour)
        self.trim = np.clip(colour * rng.uniform(1.05, 1.4), 0, 255)
        self.dark = colour * rng.uniform(0.25, 0.5)
        self.tint = np.clip(colour / colour.mean(), 0.8, 1.25)
        self.side_colour = tuple(float(value) for value in colour * rng.uniform(0.5, 0.75))
        self.porch_top = int(self.ground - self.floor_height * rng.uniform(0.8, 1.1))
        self.porch_slab = int(rng.integers(7, 16))
        self.main_window, self.other_window = self._window(), self._window()

    def paint_house(self, canvas: Canvas) -> Canvas:
        """The wall in its texture, roof, floors of windows, ornaments."""
        canvas.box(self.left, self.top, self.right, self.ground, self.texture)
        self._paint_roof(canvas)
        self._paint_floors(canvas)
        self._paint_ornaments(canvas)
        return canvas

    def _paint_roof(self, canvas: Canvas) -> None:
        """One of pediment, dome, crenellation, mansard with dormers, balustrade, flat."""
        left, right, top, middle = self.left, self.right, self.top, self.middle
        kind = int(self.rng.integers(0, 6))
        if kind == 0:
            rise = int(self.rng.integers(40, 75))
            canvas.polygon([[left - 10, top], [middle, top - rise], [right + 10, top]], self.texture * 0.85)
            patch = self._ornament(int(min(44, rise * 0.6)))
            canvas.paste(patch, middle - patch.shape[1] / 2, top - rise * 0.42 - patch.shape[0] / 4, self.tint)
        elif kind == 1:
            self._dome(canvas, int(self.rng.integers(40, 70)))
        elif kind == 2:
            step = int(self.rng.integers(10, 18))
            for x in range(left, right - step, 2 * step):
                canvas.box(x, top - step, x + step, top, self.texture)
        elif kind == 3:
            canvas.polygon(
                [[left - 8, top], [left + 25, top - 45], [right - 25, top - 45], [right + 8, top]], self.dark
            )
            dormers, patch = int(self.rng.integers(2, 6)), draw_window(self._window(), 16, 22)
            for x in np.linspace(left + 40, right - 40, dormers):
                canvas.paste(patch, x - patch.shape[1] / 2, top - 42, self.tint)
        elif kind == 4:
            for x in range(left, right - 4, 9):
                canvas.box(x, top - 16, x + 4, top, self.texture)
            canvas.box(left, top - 19, right, top - 15, self.trim)

    def _dome(self, canvas: Canvas, radius: int) -> None:
        middle, top, height = self.middle, self.top, int(radius * 1.1)
        angles = np.linspace(np.pi, 2 * np.pi, 32)
        rim = np.stack([middle + radius * np.cos(angles), top + height * np.sin(angles)], 1)
        canvas.polygon(rim, self.dark * 1.3)
        rib = tuple(float(v) for v in self.dark * 0.7)
        for i in range(-3, 4):
            start, end = (180, 270) if i < 0 else (270, 360)
            axes = abs(i) * radius // 4 + 1, height
            cv2.ellipse(canvas.image, (middle, top), axes, 0, start, end, rib, 1, cv2.LINE_AA)
        canvas.box(middle - 5, max(0, top - height - 18), middle + 5, top - height + 3, self.texture)

    def _paint_floors(self, canvas: Canvas) -> None:
        """Rows of windows under cornices; the first row may carry a frieze of ornaments."""
        pattern = int(self.rng.integers(0, 3))  # all windows alike, floors alternate, columns alternate
        for floor in range(self.floors):
            top = self.top + floor * self.floor_height
            self._cornice(canvas, top)
            head, height = top + 10, self.floor_height - 14
            if floor == 0 and self.rng.random() < 0.5:
                size = self._frieze(canvas, top)
                head, height = top + size + 8, self.floor_height - size - 10
            row = self.main_window if floor % 2 == 0 or pattern != 1 else self.other_window
            styles = [self.other_window if pattern == 2 and c % 2 else row for c in range(self.columns)]
            skip_middle = floor == self.floors - 1  # the porch stands there
            self._window_row(canvas, styles, head, height, skip_middle)
        self._door(canvas)

    def _door(self, canvas: Canvas) -> None:
        style = copy(self._window())
        style.bars_across, style.parts = 1, style.parts - {"balcony", "sill"}
        height = self.floor_height * 0.66
        patch = draw_window(style, min(40, height * 0.6), height)
        y = self.ground - patch.shape[0] + patch.shape[1] * 0.08
        canvas.paste(patch, self.middle - patch.shape[1] / 2, y, self.tint * self.rng.uniform(0.6, 1))

    def _cornice(self, canvas: Canvas, top: float) -> None:
        if self.rng.random() >= 0.8:
            return
        top, thick = int(top), int(self.rng.integers(3, 7))
        canvas.box(self.left, top, self.right, top + thick, self.trim)
        canvas.box(self.left, top + thick, self.right, top + thick + 2, self.dark)
        if self.rng.random() < 0.35:
            for x in range(self.left, self.right - 4, 8):
                canvas.box(x, top + thick + 1, x + 4, top + thick + 5, self.trim)

    def _frieze(self, canvas: Canvas, top: float) -> int:
        size = int(self.rng.integers(16, 24))
        patches = [self._ornament(size) for _ in range(int(self.rng.integers(1, 4)))]
        for i in range(int((self.right - self.left - 2 * self.pad) // (size * 1.6))):
            canvas.paste(patches[i % len(patches)], self.left + self.pad + i * size * 1.6 + 4, top + 8, self.tint)
        return size

    def _window_row(
        self, canvas: Canvas, styles: list[WindowStyle], top: float, height: float, skip_middle: bool
    ) -> None:
        spacing = (self.right - self.left - 2 * self.pad) / self.columns
        window_height = height * 0.62
        drawn: dict[WindowStyle, Patch] = {}
        for column, style in enumerate(styles):
            if skip_middle and abs(column - (self.columns - 1) / 2) < 0.6:
                continue
            tint = self.tint * self.rng.uniform(0.85, 1.08)
            if self.rng.random() < 0.06:
                patch = self._ornament(int(np.clip(min(spacing * 0.7, height * 0.6), 16, 56)))
            else:
                if style not in drawn:
                    drawn[style] = draw_window(style, min(spacing * 0.5, window_height / style.aspect), window_height)
                patch = drawn[style]
            x = self.left + self.pad + (column + 0.5) * spacing - patch.shape[1] / 2
            canvas.paste(patch, x, top + height / 2 - patch.shape[0] / 2, tint)

    def _paint_ornaments(self, canvas: Canvas) -> None:
        """Medallions from the library, sometimes a large one of its own and an inscription."""
        for _ in range(int(self.rng.integers(2, 6))):
            size = int(self.rng.integers(22, 52))
            x = self.rng.uniform(self.left + self.pad, self.right - self.pad - size)
            y = self.rng.uniform(self.top, self.ground - size - 20)
            canvas.paste(self._ornament(size), x, y, self.tint * self.rng.uniform(0.8, 1.1))
        if self.rng.random() < 0.4:
            rose = draw_ornament(self.rng, 72)
            y = self.top + self.rng.uniform(0, 0.4) * (self.ground - self.top)
            canvas.paste(rose, self.middle - 36, y, self.tint * self.rng.uniform(0.8, 1.1))
        if self.rng.random() < 0.45:
            letters, height = int(self.rng.integers(4, 10)), int(self.rng.integers(10, 20))
            ink = draw_lettering(self.rng, letters, height)
            x = int(self.rng.uniform(self.left + 5, max(self.left + 6, self.right - ink.shape[1] - 5)))
            y = int(self.top + self.rng.integers(20, 140))
            ground, letter = (self.dark, self.trim) if self.rng.random() < 0.5 else (self.trim, self.dark * 0.5)
            canvas.box(x - 4, y - 5, x + ink.shape[1] + 4, y + ink.shape[0] + 4, ground)
            canvas.paste(Patch(np.full_like(ink, 255), ink), x, y, letter / 255)

    def paint_towers(self, canvas: Canvas) -> Canvas:
        """Towers at the ends of the facade, with pointed roofs and a column of windows."""
        if not self.tower_width:
            return canvas
        style, spire = self._window(), int(self.rng.integers(20, 60))
        width = self.tower_width * 0.4
        patch = draw_window(style, width, width * min(1.7, style.aspect))
        ornament = self._ornament(int(self.tower_width * 0.6))
        levels, top = int(self.rng.integers(1, 4)), self.tower_top
        for left, right in self.towers:
            canvas.box(left, top, right, self.ground, self.texture * 0.96)
            for x in (left, right - 2):
                canvas.box(x, top, x + 2, self.ground, self.dark)
            canvas.polygon([[left - 5, top], [(left + right) // 2, max(0, top - spire)], [right + 5, top]], self.dark)
            centre = (left + right) / 2
            for level in range(levels):
                y = top + 12 + level * (self.ground - top) * 0.3
                canvas.paste(patch, centre - patch.shape[1] / 2, y, self.tint)
            canvas.paste(ornament, centre - ornament.shape[1] / 2, self.ground - (self.ground - top) * 0.2, self.tint)
        return canvas

    def paint_porch(self, canvas: Canvas) -> Canvas:
        """Columns before the door that carry a slab: the part that moves most against the wall."""
        (left, right), top, ground = self.porch_roof, self.porch_top, self.ground
        canvas.box(left, top, right, top + self.porch_slab, self.trim)
        canvas.box(left, top + self.porch_slab, right, top + self.porch_slab + 2, self.dark)
        if self.rng.random() < 0.5:
            rise = int(self.rng.integers(14, 36))
            canvas.polygon([[left - 4, top], [(left + right) // 2, top - rise], [right + 4, top]], self.texture * 0.9)
            patch = self._ornament(max(14, int(rise * 0.8)))
            canvas.paste(patch, (left + right) / 2 - patch.shape[1] / 2, top - patch.shape[0], self.tint)
        shaft = int(self.rng.integers(7, 13))
        shade = (np.sin(np.linspace(0.2, 2.9, shaft)) * 1.1)[:, None]
        for x in np.linspace(left + 3, right - shaft - 3, int(self.rng.integers(2, 6))).astype(int):
            for i in range(shaft):
                canvas.box(x + i, top + self.porch_slab + 2, x + i + 1, ground, self.trim * shade[i])
            canvas.box(x - 3, top + self.porch_slab + 2, x + shaft + 3, top + self.porch_slab + 8, self.trim)
            canvas.box(x - 3, ground - 7, x + shaft + 3, ground, self.trim * 0.8)
        return canvas


def _towers(rng: Rng, left: int, right: int) -> tuple[tuple[tuple[int, int], ...], int, int]:
    """Spans, width and rise above the roof line: none, one or two at the corners, or a high one in the middle."""
    width, rise = int(rng.integers(36, 60)), int(rng.integers(20, 80))
    kind = rng.random()
    if kind < 0.4:
        return (), 0, rise
    if kind < 0.55:
        start = (left + right - width) // 2
        return ((start, start + width),), width, rise + 40
    corners = ((left, left + width), (right - width, right))
    return corners[: 1 if kind < 0.7 else 2], width, rise
