"""Draws a window of a given style as a patch to paste on a facade."""

from __future__ import annotations

import cv2
import numpy as np

from ames_jax.scenes.drawing import Patch, shrink
from ames_jax.scenes.elements import WindowStyle

OVERSAMPLING = 3


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
        if self.style.shutters:
            self._shutters()
        if self.style.balcony:
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
        if style.diagonal:
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
        if style.sill:
            self._rectangle(left - 2 * frame, bottom + frame, right + 2 * frame, bottom + frame + max(3, frame), light)
            shadow = bottom + 2 * frame + 1
            self._rectangle(left - frame, shadow, right + frame, shadow + frame // 2 + 1, 50)
        if style.lintel == 1:
            peak = max(0, top - frame - self.above // 2)
            gable = [[left - 2 * frame, top - frame], [middle, peak], [right + 2 * frame, top - frame]]
            self._polygon(gable, int(light * 0.85), 60)
        elif style.lintel == 2:
            self._rectangle(left - 2 * frame, top - 2 * frame - 2, right + 2 * frame, top - frame, int(light * 0.9))
        if style.keystone:
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
