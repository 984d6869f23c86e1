"""The proportions and materials of one facade, drawn before anything is painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ames_jax.scenes.drawing import Rng, smooth_noise
from ames_jax.scenes.elements import Library, WindowStyle
from ames_jax.scenes.settings import CANVAS_HEIGHT, CANVAS_WIDTH

# Blue, green, red of common walls: limestone, sandstone, brick, ochre, granite, white, pink plaster, slate, terracotta.
WALLS = np.array(
    [
        (170, 195, 205), (130, 165, 190), (75, 90, 145), (100, 160, 200), (140, 142, 145),
        (205, 212, 215), (150, 160, 205), (130, 120, 110), (95, 125, 175),
    ],
    np.float32,
)  # fmt: skip


@dataclass
class Plan:
    """Positions in canvas pixels; colours float32 BGR [3]; texture float32 [H, W, 3] of the wall material."""

    texture: np.ndarray
    colour: np.ndarray
    trim: np.ndarray
    dark: np.ndarray
    tint: np.ndarray
    side_colour: tuple[float, float, float]
    left: int
    right: int
    top: int
    ground: int
    floors: int
    columns: int
    tower_width: int
    tower_top: int
    towers: tuple[tuple[int, int], ...]
    porch_roof: tuple[int, int]
    porch_top: int
    porch_slab: int
    main_window: WindowStyle
    other_window: WindowStyle

    @property
    def middle(self) -> int:
        return (self.left + self.right) // 2

    @property
    def pad(self) -> int:
        """Width at each end of the facade that is left to corner towers."""
        return self.tower_width + 6 if self.towers and self.towers[0][0] == self.left else 10

    @property
    def floor_height(self) -> float:
        return (self.ground - self.top) / self.floors

    @classmethod
    def random(cls, rng: Rng, library: Library) -> Plan:
        colour = WALLS[int(rng.integers(len(WALLS)))] * rng.uniform(0.7, 1.1) * rng.uniform(0.93, 1.07, 3)
        colour = np.clip(colour, 30, 235)
        left, right = int(rng.integers(30, 90)), int(CANVAS_WIDTH - rng.integers(30, 90))
        top, ground = int(rng.integers(90, 150)), CANVAS_HEIGHT - 12
        floors, columns = int(rng.integers(2, 5)), int(rng.integers(3, 8))
        towers, tower_width, tower_rise = _towers(rng, left, right)
        porch_width = int(rng.integers(60, max(61, min(200, right - left - 2 * tower_width))))
        middle = (left + right) // 2
        return cls(
            texture=_wall_texture(rng, colour),
            colour=colour,
            trim=np.clip(colour * rng.uniform(1.05, 1.4), 0, 255),
            dark=colour * rng.uniform(0.25, 0.5),
            tint=np.clip(colour / colour.mean(), 0.8, 1.25),
            side_colour=tuple(float(v) for v in colour * rng.uniform(0.5, 0.75)),
            left=left,
            right=right,
            top=top,
            ground=ground,
            floors=floors,
            columns=columns,
            tower_width=tower_width,
            tower_top=max(8, top - tower_rise),
            towers=towers,
            porch_roof=(middle - porch_width // 2, middle + porch_width // 2),
            porch_top=int(ground - (ground - top) / floors * rng.uniform(0.8, 1.1)),
            porch_slab=int(rng.integers(7, 16)),
            main_window=library.window(rng),
            other_window=library.window(rng),
        )


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


def _wall_texture(rng: Rng, colour: np.ndarray) -> np.ndarray:
    """Bricks, stone blocks, plaster or rustication over the whole canvas."""
    height, width = CANVAS_HEIGHT, CANVAS_WIDTH
    tone = smooth_noise(rng, height, width, 12, 5) + smooth_noise(rng, height, width, 60, 4)
    kind = int(rng.integers(0, 4))
    if kind in (0, 1):
        row_height = int(rng.integers(6, 11)) if kind == 0 else int(rng.integers(16, 30))
        brick_width = int(row_height * (rng.uniform(1.8, 2.8) if kind == 0 else rng.uniform(1.2, 2.2)))
        y, x = np.mgrid[0:height, 0:width]
        row = y // row_height
        shifted = x + (row % 2) * (brick_width // 2)
        tones = rng.standard_normal((height // row_height + 2, 2 * width // brick_width + 2), dtype=np.float32)
        tone += tones[row, shifted // brick_width] * (9 if kind == 0 else 12)
        tone[(y % row_height == 0) | (shifted % brick_width == 0)] -= 22
    elif kind == 3:
        tone[np.arange(height) % int(rng.integers(10, 22)) < 2] -= 30
    return colour.astype(np.float32) + tone[..., None]
