"""Street furniture: one small pool of items that stand before every landmark alike.

The same posters, cars and kiosks appear in training, validation and test photos of all landmarks. They match perfectly
and mean nothing: a matcher that merely counts matches is misled by them, one that learns can learn to ignore them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ames_jax.scenes.drawing import Canvas, Patch, Rng, Sprite
from ames_jax.scenes.elements import WindowStyle, draw_lettering, draw_ornament, draw_window

Colour = np.ndarray

# Blue, green, red of paints one sees in a street.
PAINTS = np.array(
    [
        (40, 40, 180), (150, 70, 30), (60, 110, 40), (40, 170, 220), (60, 60, 60), (225, 225, 225),
        (120, 60, 110), (90, 150, 200), (160, 140, 60), (35, 35, 95),
    ],
    np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class StreetItem:
    """A sprite in canvas pixels; hung items go on the facade, the others stand on the ground before it."""

    sprite: Sprite
    hung: bool


def build_street(seed: int, count: int) -> list[StreetItem]:
    """The pool: `count` items, the kinds in turn."""
    rng = np.random.default_rng([seed, 2])
    kinds = (_poster, _car, _banner, _kiosk, _bus, _shop_sign)
    drawn = [kinds[i % len(kinds)] for i in range(count)]
    return [StreetItem(draw(rng).sprite(), hung=draw in (_banner, _shop_sign)) for draw in drawn]


def _paint(rng: Rng) -> Colour:
    return np.clip(PAINTS[int(rng.integers(len(PAINTS)))] * rng.uniform(0.85, 1.15, 3), 0, 255)


def _contrast(colour: Colour) -> Colour:
    return np.full(3, 235.0 if colour.mean() < 130 else 25.0)


def _write(canvas: Canvas, rng: Rng, x: float, y: float, width: float, height: int, colour: Colour) -> None:
    letters = max(2, int(width / max(4, int(height * 0.8))))
    ink = draw_lettering(rng, letters, height)
    canvas.paste(Patch(np.full_like(ink, 255), ink), x, y, colour / 255)


def _advertisement(canvas: Canvas, rng: Rng, left: int, top: int, right: int, bottom: int) -> None:
    """A panel with an emblem, writing, stripes and dots on a bright ground."""
    ground = _paint(rng)
    ink = _contrast(ground)
    canvas.box(left, top, right, bottom, ink * 0.3)
    canvas.box(left + 3, top + 3, right - 3, bottom - 3, ground)
    width, height = right - left, bottom - top
    size = int(min(width, height) * 0.62)
    emblem_x = left + 6 if rng.random() < 0.5 else right - size - 6
    canvas.paste(draw_ornament(rng, size), emblem_x, top + height * 0.08, np.clip(_paint(rng) / 120, 0.4, 1.6))
    text_x = left + size + 12 if emblem_x == left + 6 else left + 8
    for line in range(int(rng.integers(1, 4))):
        letter = int(rng.integers(9, 17))
        y = top + 8 + line * height * 0.27
        if y + letter < bottom - 4 and right - size - left > 34:
            _write(canvas, rng, text_x, y, width - size - 24, letter, ink)
    if rng.random() < 0.7:
        _write(canvas, rng, left + 8, bottom - 18, width - 20, 11, ink)
    for _ in range(int(rng.integers(2, 7))):
        x, y, side = rng.uniform(left + 6, right - 14), rng.uniform(top + 6, bottom - 14), rng.uniform(4, 9)
        canvas.box(x, y, x + side, y + side, _paint(rng))


def _poster(rng: Rng) -> Canvas:
    width, height = int(rng.integers(100, 150)), int(rng.integers(70, 105))
    canvas = Canvas(height + 45, width)
    _advertisement(canvas, rng, 0, 0, width, height)
    for x in (width // 6, width - width // 6):
        canvas.box(x, height, x + 5, height + 45, np.array([60.0, 60, 65]))
    return canvas


def _banner(rng: Rng) -> Canvas:
    width, height = int(rng.integers(46, 62)), int(rng.integers(130, 180))
    canvas = Canvas(height, width)
    ground = _paint(rng)
    canvas.box(0, 0, width, height, ground)
    canvas.box(4, 4, width - 4, 8, _contrast(ground))
    canvas.paste(draw_ornament(rng, width - 12), 6, 14, np.clip(_paint(rng) / 120, 0.4, 1.6))
    for y in range(width + 14, height - 24, 22):
        _write(canvas, rng, 5, y, width - 12, 13, _contrast(ground))
    canvas.box(4, height - 9, width - 4, height - 5, _contrast(ground))
    return canvas


def _shop_sign(rng: Rng) -> Canvas:
    canvas = Canvas(44, int(rng.integers(130, 200)))
    width = canvas.alpha.shape[1]
    ground = _paint(rng)
    canvas.box(0, 0, width, 44, ground * 0.6)
    canvas.box(3, 3, width - 3, 41, ground)
    canvas.paste(draw_ornament(rng, 34), 5, 5)
    _write(canvas, rng, 46, 9, width - 56, 22, _contrast(ground))
    return canvas


def _kiosk(rng: Rng) -> Canvas:
    """A small shop: striped awning, written board, a window with goods, a poster."""
    width, height = 130, 125
    canvas = Canvas(height, width)
    body, awning = _paint(rng), _paint(rng)
    canvas.box(6, 30, width - 6, height, body)
    for i, x in enumerate(range(0, width, 13)):
        canvas.polygon([[x, 28], [x + 13, 28], [x + 15, 46], [x - 2, 46]], awning if i % 2 else np.full(3, 232.0))
    canvas.box(4, 4, width - 4, 28, awning * 0.5)
    _write(canvas, rng, 10, 7, width - 24, 15, _contrast(awning * 0.5))
    canvas.box(12, 54, 74, 96, np.array([55.0, 45, 40]))
    for _ in range(26):
        x, y, side = rng.uniform(13, 66), rng.uniform(55, 88), rng.uniform(4, 9)
        canvas.box(x, y, min(x + side, 73), min(y + side, 95), _paint(rng) * 1.1)
    _advertisement(canvas, rng, 80, 54, width - 10, 112)
    return canvas


def _wheel(canvas: Canvas, x: float, y: float, radius: int) -> None:
    for share, value in ((1.0, 25.0), (0.6, 190.0), (0.22, 40.0)):
        cv2.circle(canvas.image, (int(x), int(y)), int(radius * share), (value, value, value), -1)
        cv2.circle(canvas.alpha, (int(x), int(y)), int(radius * share), 1.0, -1)
    for angle in np.arange(5) * 2 * np.pi / 5:
        tip = int(x + 0.55 * radius * np.cos(angle)), int(y + 0.55 * radius * np.sin(angle))
        cv2.line(canvas.image, (int(x), int(y)), tip, (90.0, 90.0, 90.0), 2)


def _car(rng: Rng) -> Canvas:
    width, height = int(rng.integers(140, 175)), 66
    canvas = Canvas(height, width)
    paint, glass = _paint(rng), np.array([70.0, 60, 50])
    rear, front = width * rng.uniform(0.14, 0.3), width * rng.uniform(0.66, 0.88)
    slope, middle = width * 0.1, width * 0.49
    canvas.polygon([[rear - slope, 28], [rear, 4], [front, 4], [front + slope, 28]], paint)
    canvas.polygon([[rear - 6, 26], [rear + 5, 8], [middle - 3, 8], [middle - 3, 26]], glass)
    canvas.polygon([[middle + 3, 26], [middle + 3, 8], [front - 4, 8], [front + 8, 26]], glass)
    canvas.box(1, 27, width - 1, 54, paint)
    canvas.box(1, 41, width - 1, 43, paint * 0.5)
    for x in (0.3, 0.5, 0.7):
        canvas.box(width * x, 29, width * x + 1, 53, paint * 0.4)
    for x in (0.42, 0.62):
        canvas.box(width * x, 33, width * x + 9, 36, paint * 0.3)
    canvas.box(1, 32, 9, 39, np.array([170.0, 230, 240]))
    canvas.box(width - 8, 32, width - 1, 39, np.array([40.0, 40, 210]))
    if rng.random() < 0.6:
        canvas.paste(draw_ornament(rng, 20), width * 0.53, 31)
        _write(canvas, rng, width * 0.3 + 4, 46, width * 0.4, 7, _contrast(paint))
    for x in (0.2, 0.79):
        _wheel(canvas, width * x, 53, 12)
    return canvas


def _bus(rng: Rng) -> Canvas:
    """A bus or tram: rows of like windows, a line of writing and an advertisement on its flank."""
    width, height = 260, 104
    canvas = Canvas(height, width)
    paint = _paint(rng)
    canvas.box(0, 4, width, 92, paint)
    canvas.box(0, 0, width, 8, paint * 0.6)
    window = draw_window(WindowStyle(rng), 22, 26)
    for x in range(4, width - 30, 32):
        canvas.box(x + 2, 14, x + 28, 42, np.array([75.0, 65, 55]))
        canvas.paste(Patch(window.gray, window.alpha * 0.7), x - 2, 6)
    _write(canvas, rng, 12, 48, 60, 12, _contrast(paint))
    _advertisement(canvas, rng, 90, 46, 220, 88)
    for x in (44, 216):
        _wheel(canvas, x, 90, 13)
    return canvas
