"""Architectural elements: ornaments, windows, lettering, and the library of them that all landmarks share."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ames_jax.scenes.drawing import Patch, Rng, shrink

ORNAMENT_SIZE = 40


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


@dataclass(frozen=True)
class WindowStyle:
    """How one kind of window looks; sizes are shares of its width, greys 0..255."""

    shape: int  # 0 rectangle, 1 round arch, 2 pointed arch, 3 segmental arch
    bars_across: int
    bars_up: int
    frame: float
    aspect: float
    glass: float
    light: float
    lintel: int  # 0, 3 none, 1 gable, 2 slab
    sill: bool
    shutters: bool
    balcony: bool
    keystone: bool
    diagonal: bool

    @classmethod
    def random(cls, rng: Rng) -> WindowStyle:
        return cls(
            shape=int(rng.integers(0, 4)),
            bars_across=int(rng.integers(1, 4)),
            bars_up=int(rng.integers(1, 5)),
            frame=rng.uniform(0.06, 0.14),
            aspect=rng.uniform(1.3, 2.3),
            glass=rng.uniform(25, 80),
            light=rng.uniform(170, 245),
            lintel=int(rng.integers(0, 4)),
            sill=bool(rng.random() < 0.6),
            shutters=bool(rng.random() < 0.25),
            balcony=bool(rng.random() < 0.25),
            keystone=bool(rng.random() < 0.4),
            diagonal=bool(rng.random() < 0.2),
        )


class Library:
    """Elements shared between landmarks: the reason why different buildings match in places (hard negatives)."""

    def __init__(self, seed: int, windows: int, ornaments: int, shared: float) -> None:
        rng = np.random.default_rng([seed, 1])
        self.windows = [WindowStyle.random(rng) for _ in range(windows)]
        self.ornaments = [draw_ornament(rng) for _ in range(ornaments)]
        self.shared = shared

    def window(self, rng: Rng) -> WindowStyle:
        """A shared style with probability `shared`, else one that no other landmark has."""
        if rng.random() < self.shared:
            return self.windows[int(rng.integers(len(self.windows)))]
        return WindowStyle.random(rng)

    def ornament(self, rng: Rng, size: int) -> Patch:
        shared = rng.random() < self.shared
        patch = self.ornaments[int(rng.integers(len(self.ornaments)))] if shared else draw_ornament(rng)
        return patch.resized(size)
