"""The effects of light and lens on a photo: cast shadow, uneven light, contrast, colour cast, blur, noise, JPEG."""

from __future__ import annotations

import cv2
import numpy as np

from ames_jax.scenes.drawing import Rng, add_gray

Image = np.ndarray  # uint8 [H, W, 3]


def develop(photo: Image, rng: Rng, difficulty: float, night: bool) -> bytes:
    """The bytes of a JPEG file of a rendered scene, uint8 [H, W, 3]."""
    photo = _uneven_light(photo, rng, difficulty)
    photo = _tone(photo, rng, difficulty, night)
    blur = rng.uniform(0, 1.7) * difficulty
    if rng.random() < 0.6 and blur > 0.3:
        photo = cv2.GaussianBlur(photo, (0, 0), blur)
    if rng.random() < 0.15 * difficulty:
        photo = _motion_blur(photo, rng)
    noise = rng.standard_normal(photo.shape[:2], dtype=np.float32)
    add_gray(photo, noise * np.float32(rng.uniform(1, 9) * difficulty * (1.5 if night else 1)))
    quality = int(rng.integers(35, 92))
    return cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _uneven_light(photo: Image, rng: Rng, difficulty: float) -> Image:
    """A cast shadow with soft edges and light that falls off across the photo, as one gain map."""
    height, width = photo.shape[:2]
    gain = np.ones((height, width), np.float32)
    if rng.random() < 0.55:
        corners = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 6)), 2)) * [width, height]
        mask = np.zeros((height, width), np.uint8)
        cv2.fillConvexPoly(mask, cv2.convexHull(corners.astype(np.int32)), 255)
        gain -= cv2.blur(mask, (5, 5)) * np.float32(rng.uniform(0.25, 0.75) * difficulty / 255)
    if rng.random() < 0.5:
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.45) * difficulty
        across = np.float32(strength * np.cos(angle)) * np.linspace(-1, 1, width, dtype=np.float32)
        down = np.float32(strength * np.sin(angle)) * np.linspace(-1, 1, height, dtype=np.float32)
        gain *= 1 + across[None] + down[:, None]
    gain = np.clip(gain * 128, 0, 255).astype(np.uint8)
    return cv2.multiply(photo, cv2.merge([gain] * 3), scale=1 / 128)


def _tone(photo: Image, rng: Rng, difficulty: float, night: bool) -> Image:
    """Gamma, contrast, brightness and colour cast through one table per channel."""
    level = np.linspace(0, 1, 256)
    gamma = np.exp(rng.uniform(-0.6, 0.6) * difficulty)
    contrast, lift = 1 - rng.uniform(0, 0.5) * difficulty, rng.uniform(-30, 30) * difficulty
    if night:
        contrast, lift = min(1.0, contrast + 0.25), rng.uniform(-5, 12)
    curve = (255 * level**gamma - 128) * contrast + 128 + lift
    cast = 1 + rng.uniform(-0.1, 0.1, 3) * difficulty
    table = np.clip(curve[:, None] * cast, 0, 255).astype(np.uint8)
    return cv2.LUT(photo, table[:, None, :])


def _motion_blur(photo: Image, rng: Rng) -> Image:
    length, angle = int(rng.integers(3, 7)), rng.uniform(0, 180)
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1 / length
    turn = cv2.getRotationMatrix2D(((length - 1) / 2, (length - 1) / 2), angle, 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    return cv2.filter2D(photo, -1, kernel / kernel.sum())
