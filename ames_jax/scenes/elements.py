"""Architectural elements: ornaments, lettering, walls, windows, and the library of them that all landmarks share."""

from __future__ import annotations

import cv2
import numpy as np

from ames_jax.scenes.drawing import Patch, Rng, shrink, smooth_noise
from ames_jax.scenes.settings import CANVAS_HEIGHT, CANVAS_WIDTH

ORNAMENT_SIZE = 40
OVERSAMPLING = 3  # of windows, before they are shrunk


def draw_ornament(rng: Rng, size: int = ORNAMENT_SIZE) -> Patch:
    """A random relief (disc, square, shield or lozenge, with or without a rosette): [size, size]."""
    side = 4 * size
    image, alpha = np.full((side, side), 128, np.uint8), np.zeros((side, side), np.uint8)
    base, dark, light = int(rng.integers(120, 200)), int(rng.integers(20, 80)), int(rng.integers(200, 255))
    outline = int(rng.integers(0, 6))
    centre = side // 2
    if outline in (0, 3):
        cv2.circle(alpha, (centre, centre), int(side * 0.48), 255, -1)
    else:
        corners = {
            1: [[0.06, 0.06], [0.94, 0.06], [0.94, 0.94], [0.06, 0.94]],
            2: [[0.08, 0.05], [0.92, 0.05], [0.9, 0.6], [0.5, 0.98], [0.1, 0.6]],
        }.get(outline, [[0.5, 0.02], [0.98, 0.5], [0.5, 0.98], [0.02, 0.5]])
        cv2.fillPoly(alpha, [(np.array(corners) * side).astype(np.int32)], 255)
    image[alpha > 0] = base
    if outline in (0, 4):
        _rosette(image, rng, dark, light)
    for _ in range(int(rng.integers(3, 8))):
        _relief(image, rng, dark, light)
    image[cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((9, 9), np.uint8)) > 0] = dark
    return Patch(shrink(image, (size, size)).astype(np.float32), shrink(alpha, (size, size)).astype(np.float32) / 255)


def _rosette(image: np.ndarray, rng: Rng, dark: int, light: int) -> None:
    side, centre = image.shape[0], image.shape[0] // 2
    petals, radius, phase = int(rng.integers(5, 13)), rng.uniform(0.2, 0.34) * side, rng.uniform(0, 6.3)
    for i in range(petals):
        angle = phase + 2 * np.pi * i / petals
        at = int(centre + radius * np.cos(angle)), int(centre + radius * np.sin(angle))
        axes = int(side * rng.uniform(0.1, 0.13)), int(side * rng.uniform(0.04, 0.09))
        cv2.ellipse(image, at, axes, np.degrees(angle), 0, 360, dark if i % 2 else light, -1)
    cv2.circle(image, (centre, centre), int(side * rng.uniform(0.06, 0.14)), dark, -1)


def _relief(image: np.ndarray, rng: Rng, dark: int, light: int) -> None:
    side = image.shape[0]
    kind, value = int(rng.integers(0, 3)), (dark, light, int(rng.integers(40, 220)))[int(rng.integers(0, 3))]
    x, y = rng.uniform(0.2, 0.8, 2) * side
    if kind == 0:
        corners = int(rng.integers(3, 6))
        angles, radii = np.sort(rng.uniform(0, 6.28, corners)), rng.uniform(0.06, 0.22, corners) * side
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        cv2.fillPoly(image, [points.astype(np.int32)], value)
    elif kind == 1:
        axes = int(side * rng.uniform(0.05, 0.25)), int(side * rng.uniform(0.05, 0.2))
        turn, start, end = rng.uniform(0, 180), rng.uniform(0, 180), rng.uniform(200, 360)
        cv2.ellipse(image, (int(x), int(y)), axes, turn, start, end, value, int(side * rng.uniform(0.02, 0.06)))
    else:
        cv2.circle(image, (int(x), int(y)), int(side * rng.uniform(0.03, 0.09)), value, -1)


def draw_lettering(rng: Rng, letters: int, height: int) -> np.ndarray:
    """A line of invented letters, float32 [height + 2, letters · 0.8 · height], 1 = ink.

    Strokes on a 3 × 4 grid instead of cv2.putText, whose fonts differ between OpenCV 4 and 5.
    """
    advance = max(4, int(height * 0.8))
    mask = np.zeros((4 * height + 8, 4 * letters * advance), np.uint8)
    for i in range(letters):
        for _ in range(int(rng.integers(2, 5))):
            x = rng.integers(0, 3, 2) * height + 3 + i * 4 * advance
            y = rng.integers(0, 4, 2) * (4 * height // 3) + 4
            cv2.line(mask, (int(x[0]), int(y[0])), (int(x[1]), int(y[1])), 255, max(4, height // 2))
    return shrink(mask, (letters * advance, height + 2)).astype(np.float32) / 255


def draw_wall(rng: Rng, colour: np.ndarray) -> np.ndarray:
    """Bricks, stone blocks, plaster or rustication of a colour [3] (BGR): float32 of the canvas' size [H, W, 3]."""
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


class WindowStyle:
    """The looks of one kind of window, drawn at random; sizes are shares of its width, greys 0..255."""

    def __init__(self, rng: Rng) -> None:
        self.shape = int(rng.integers(0, 4))  # rectangle, round arch, pointed arch, segmental arch
        self.bars_across, self.bars_up = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        self.frame, self.aspect = rng.uniform(0.06, 0.14), rng.uniform(1.3, 2.3)
        self.glass, self.light = rng.uniform(25, 80), rng.uniform(170, 245)
        self.lintel = int(rng.integers(0, 4))  # 1 gable, 2 slab, else none
        chances = {"sill": 0.6, "shutters": 0.25, "balcony": 0.25, "keystone": 0.4, "diagonal": 0.2}
        self.parts = {part for part, chance in chances.items() if rng.random() < chance}


def draw_window(style: WindowStyle, width: float, height: float) -> Patch:
    """A window whose opening is width × height pixels; the patch is larger by margins for sill, lintel and shutters."""
    return _WindowPainter(style, int(width * OVERSAMPLING), int(height * OVERSAMPLING)).patch()


class _WindowPainter:
    def __init__(self, style: WindowStyle, width: int, height: int) -> None:
        width, height = max(width, 9), max(height, 9)
        side, above, below = int(0.35 * width), int(0.3 * width), int(0.25 * width)
        self.style, self.width, self.height, self.above = style, width, height, above
        self.gray = np.zeros((height + above + below, width + 2 * side), np.uint8)
        self.alpha, self.glass = np.zeros_like(self.gray), np.zeros_like(self.gray)
        self.left, self.top = side, above
        self.right, self.bottom = side + width, above + height
        self.frame = max(2, int(style.frame * width))
        self.light = int(style.light)

    def patch(self) -> Patch:
        self._outline(self.alpha, self.frame, 255)
        self._outline(self.gray, self.frame, self.light)
        self._outline(self.gray, 0, int(self.style.glass))
        self._outline(self.glass, 0, 255)
        self._bars()
        self._surround()
        if "shutters" in self.style.parts:
            self._shutters()
        if "balcony" in self.style.parts:
            self._balcony()
        size = self.gray.shape[1] // OVERSAMPLING, self.gray.shape[0] // OVERSAMPLING
        gray, alpha, glass = (shrink(x, size).astype(np.float32) for x in (self.gray, self.alpha, self.glass))
        return Patch(gray, alpha / 255, glass / 255)

    def _outline(self, target: np.ndarray, grow: int, value: int) -> None:
        left, top, right, bottom = self.left - grow, self.top - grow, self.right + grow, self.bottom + grow
        shape, span = self.style.shape, self.right - self.left + 2 * grow
        rise = (0, span // 2, int(span * 0.85), span // 4)[shape]
        cv2.rectangle(target, (left, top + rise), (right, bottom), value, -1)
        if shape in (1, 3):
            cv2.ellipse(target, ((left + right) // 2, top + rise), (span // 2, rise), 0, 180, 360, value, -1)
        elif shape == 2:
            t = np.linspace(0, 1, 9)
            drop = rise - rise * np.sqrt(t * (2 - t))
            up = np.stack([left + span / 2 * t, top + drop], 1)
            down = np.stack([right - span / 2 * t[::-1], top + drop[::-1]], 1)
            cv2.fillPoly(target, [np.concatenate([up, down]).astype(np.int32)], value)

    def _bars(self) -> None:
        style, bars, thick = self.style, np.zeros_like(self.gray), max(2, self.frame // 2)
        for i in range(1, style.bars_across + 1):
            x = self.left + self.width * i // (style.bars_across + 1)
            cv2.line(bars, (x, self.top), (x, self.bottom), 255, thick)
        for i in range(1, style.bars_up + 1):
            y = self.top + self.height * i // (style.bars_up + 1)
            cv2.line(bars, (self.left, y), (self.right, y), 255, thick)
        if "diagonal" in style.parts:
            cv2.line(bars, (self.left, self.top), (self.right, self.bottom), 255, thick)
            cv2.line(bars, (self.right, self.top), (self.left, self.bottom), 255, thick)
        inside = (bars > 0) & (self.glass > 0)
        self.gray[inside], self.glass[inside] = int(self.light * 0.9), 0

    def _rectangle(self, left: int, top: int, right: int, bottom: int, value: int) -> None:
        cv2.rectangle(self.gray, (left, top), (right, bottom), value, -1)
        cv2.rectangle(self.alpha, (left, top), (right, bottom), 255, -1)
        cv2.rectangle(self.glass, (left, top), (right, bottom), 0, -1)

    def _polygon(self, points: list[list[int]], value: int, edge: int) -> None:
        corners = np.array(points, np.int32)
        cv2.fillPoly(self.gray, [corners], value)
        cv2.fillPoly(self.alpha, [corners], 255)
        cv2.polylines(self.gray, [corners], True, edge, 2)

    def _surround(self) -> None:
        style, frame, light = self.style, self.frame, self.light
        left, top, right, bottom = self.left, self.top, self.right, self.bottom
        middle = (left + right) // 2
        if "sill" in style.parts:
            self._rectangle(left - 2 * frame, bottom + frame, right + 2 * frame, bottom + frame + max(3, frame), light)
            shadow = bottom + 2 * frame + 1
            self._rectangle(left - frame, shadow, right + frame, shadow + frame // 2 + 1, 50)
        if style.lintel == 1:
            peak = max(0, top - frame - self.above // 2)
            gable = [[left - 2 * frame, top - frame], [middle, peak], [right + 2 * frame, top - frame]]
            self._polygon(gable, int(light * 0.85), 60)
        elif style.lintel == 2:
            self._rectangle(left - 2 * frame, top - 2 * frame - 2, right + 2 * frame, top - frame, int(light * 0.9))
        if "keystone" in style.parts:
            high, low = top - 2 * frame, top + frame // 2
            wide, slim = frame, frame // 2
            stone = [[middle - wide, high], [middle + wide, high], [middle + slim, low], [middle - slim, low]]
            self._polygon(stone, 245, 40)

    def _shutters(self) -> None:
        wide = self.width // 4
        for left in (self.left - self.frame - wide, self.right + self.frame):
            self._rectangle(left, self.top, left + wide, self.bottom, 90)
            for y in range(self.top + 4, self.bottom - 2, 9):
                cv2.line(self.gray, (left + 3, y), (left + wide - 3, y), 150, 2)

    def _balcony(self) -> None:
        left, right, frame = self.left - 2 * self.frame, self.right + 2 * self.frame, self.frame
        rail = self.bottom - self.height // 4
        for x in range(left, right, max(5, self.width // 9)):
            for target, value in ((self.gray, 20), (self.alpha, 255), (self.glass, 0)):
                cv2.line(target, (x, rail), (x, self.bottom + frame), value, 3)
        self._rectangle(left, rail, right, rail + 4, 15)


class Library:
    """Elements shared between landmarks: the reason why different buildings match in places (hard negatives)."""

    def __init__(self, seed: int, windows: int, ornaments: int, shared: float) -> None:
        rng = np.random.default_rng([seed, 1])
        self.windows = [WindowStyle(rng) for _ in range(windows)]
        self.ornaments = [draw_ornament(rng) for _ in range(ornaments)]
        self.shared = shared

    def window(self, rng: Rng) -> WindowStyle:
        """A shared style with probability `shared`, else one that no other landmark has."""
        if rng.random() < self.shared:
            return self.windows[int(rng.integers(len(self.windows)))]
        return WindowStyle(rng)

    def ornament(self, rng: Rng, size: int) -> Patch:
        """A shared ornament or one of its own, likewise: [size, size]."""
        shared = rng.random() < self.shared
        patch = self.ornaments[int(rng.integers(len(self.ornaments)))] if shared else draw_ornament(rng)
        return patch.resized(size)
