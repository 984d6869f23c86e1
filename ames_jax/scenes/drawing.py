"""Small drawing tools: noise, sprites that can be warped over a photo, a canvas to paint a facade on."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ames_jax.scenes.settings import CANVAS_HEIGHT, CANVAS_WIDTH

Rng = np.random.Generator


def smooth_noise(rng: Rng, height: int, width: int, cells: int, strength: float) -> np.ndarray:
    """Low-frequency noise, float32 [height, width]: `cells` random values across the width, cubic in between."""
    grid = rng.standard_normal((max(2, cells * height // width), max(2, cells)), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * strength


@dataclass(frozen=True)
class Patch:
    """A grey element to paste on a canvas: gray float32 0..255, alpha 0..1, glass 0..1 (lit at night), all [h, w]."""

    gray: np.ndarray
    alpha: np.ndarray
    glass: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)"""
        return self.gray.shape

    def resized(self, size: int) -> Patch:
        """The patch at size × size pixels, averaged over areas."""
        if size == self.gray.shape[0]:
            return self
        return Patch(shrink(self.gray, (size, size)), shrink(self.alpha, (size, size)))


def shrink(image: np.ndarray, width_height: tuple[int, int]) -> np.ndarray:
    """The picture [h, w, …] at a smaller (width, height), averaged over areas."""
    return cv2.resize(image, width_height, interpolation=cv2.INTER_AREA)


class Sprite:
    """A flat picture with transparency, uint8 [h, w, 4] (B, G, R premultiplied by alpha), with a half-size copy.

    The half-size copy is what a far-away view is drawn from: drawing it from the full size would alias.
    """

    def __init__(self, image: np.ndarray, alpha: np.ndarray) -> None:
        """image uint8 [h, w, 3]; alpha uint8 [h, w]."""
        premultiplied = cv2.multiply(image, cv2.merge([alpha] * 3), scale=1 / 255)
        full = cv2.merge([*cv2.split(premultiplied), alpha])
        half = shrink(full, (max(1, full.shape[1] // 2), max(1, full.shape[0] // 2)))
        self.levels = (full, half)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.levels[0].shape[1], self.levels[0].shape[0]

    def paint(self, photo: np.ndarray, homography: np.ndarray) -> None:
        """Draws the sprite over `photo` (uint8 [H, W, 3], in place); homography: sprite pixels → photo pixels."""
        width, height = self.size
        corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ homography.T
        if corners[:, 2].min() <= 0.15 * corners[:, 2].max():
            return  # reaches beside or behind the camera
        corners = corners[:, :2] / corners[:, 2:]
        left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (photo.shape[1], photo.shape[0]))
        if right - left < 2 or bottom - top < 2:
            return
        (ax, ay), (bx, by) = corners[2] - corners[0], corners[3] - corners[1]
        area = 0.5 * abs(ax * by - ay * bx)
        level = int(area < 0.36 * width * height)
        source = self.levels[level]
        grow = np.diag([width / source.shape[1], height / source.shape[0], 1.0])
        shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
        warped = cv2.warpPerspective(
            source, shift @ homography @ grow, (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR
        )
        blend(photo[top:bottom, left:right], warped)


def blend(region: np.ndarray, overlay: np.ndarray) -> None:
    """Lays a premultiplied overlay uint8 [h, w, 4] over region uint8 [h, w, 3], in place."""
    through = 255 - overlay[..., 3]
    kept = cv2.multiply(region, cv2.merge([through] * 3), scale=1 / 255)
    region[:] = cv2.add(kept, cv2.cvtColor(overlay, cv2.COLOR_BGRA2BGR))


def add_gray(region: np.ndarray, gray: np.ndarray) -> None:
    """Adds float32 [h, w] to each channel of region uint8 [h, w, 3], in place."""
    region[:] = cv2.add(region, cv2.merge([np.rint(gray).astype(np.int16)] * 3), dtype=cv2.CV_8U)


class Canvas:
    """A plane being painted: image float32 [h, w, 3] (BGR 0..255), alpha and glass float32 [h, w] (0..1)."""

    def __init__(self, height: int = CANVAS_HEIGHT, width: int = CANVAS_WIDTH) -> None:
        self.image = np.zeros((height, width, 3), np.float32)
        self.alpha = np.zeros((height, width), np.float32)
        self.glass = np.zeros((height, width), np.float32)

    def box(self, left: float, top: float, right: float, bottom: float, fill: np.ndarray) -> None:
        """A solid box; fill is a colour [3] or a texture of the canvas' size [h, w, 3]."""
        height, width = self.alpha.shape
        rows = slice(int(np.clip(top, 0, height)), int(np.clip(bottom, 0, height)))
        columns = slice(int(np.clip(left, 0, width)), int(np.clip(right, 0, width)))
        self.image[rows, columns] = fill[rows, columns] if np.ndim(fill) == 3 else fill
        self.alpha[rows, columns] = 1
        self.glass[rows, columns] = 0

    def polygon(self, points: object, fill: np.ndarray) -> None:
        """A solid polygon [[x, y], …]; fill as in `box`."""
        mask = np.zeros(self.alpha.shape, np.uint8)
        cv2.fillPoly(mask, [np.asarray(points, np.float64).astype(np.int32)], 255)
        inside = mask > 0
        self.image[inside] = fill[inside] if np.ndim(fill) == 3 else fill
        self.alpha[inside] = 1
        self.glass[inside] = 0

    def paste(self, patch: Patch, x: float, y: float, tint: np.ndarray | float = 1.0) -> None:
        """Lays a grey patch, coloured by `tint` [3], with its left upper corner at (x, y); clipped at the border."""
        height, width = patch.shape
        x, y = int(x), int(y)
        left, top = max(0, x), max(0, y)
        right, bottom = min(self.alpha.shape[1], x + width), min(self.alpha.shape[0], y + height)
        if right <= left or bottom <= top:
            return
        here = slice(top, bottom), slice(left, right)
        there = slice(top - y, bottom - y), slice(left - x, right - x)
        alpha = patch.alpha[there]
        self.image[here] += alpha[..., None] * (patch.gray[there][..., None] * np.float32(tint) - self.image[here])
        self.alpha[here] = np.maximum(self.alpha[here], alpha)
        self.glass[here] *= 1 - alpha
        if patch.glass is not None:
            self.glass[here] = np.maximum(self.glass[here], patch.glass[there])

    def sprite(self) -> Sprite:
        """The plane as it is now, as a sprite."""
        return Sprite(np.clip(self.image, 0, 255).astype(np.uint8), (self.alpha * 255).astype(np.uint8))
