"""Composes the photos of the transfer set: a facade or a textured scene, seen from anywhere, in any light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ames_jax.scenes.camera import Camera
from ames_jax.scenes.drawing import Rng, Sprite, add_gray, blend
from ames_jax.scenes.facade import Landmark
from ames_jax.scenes.photo import develop
from ames_jax.scenes.settings import CANVAS_HEIGHT, CANVAS_WIDTH, PHOTO_HEIGHT, PHOTO_WIDTH, Settings
from ames_jax.scenes.textures import blob, draw_texture, fractal_noise
from ames_jax.scenes.world import NIGHT_SKY, SKIES, World

CLUTTER = 24  # things that stand before every instance alike, so that they mean nothing
SIZES = (1.0, 1.25, 1.5, 1.75)  # of a photo, in sizes of the landmarks' photos


@dataclass(frozen=True)
class Layer:
    """A flat part of a textured scene: `sprite` with its corner at (x, y), `depth` before the canvas, enlarged `scale`."""

    sprite: Sprite
    x: float
    y: float
    depth: float
    scale: float


@dataclass(frozen=True)
class Instance:
    """What the photos of one label show: the facade, if it is one, behind it and before it the layers, far ones first."""

    facade: Landmark | None
    layers: tuple[Layer, ...]


class TransferWorld(World):
    """The landmarks' world with other instances and stronger photographs."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        rng = np.random.default_rng([settings.seed, 12])
        self.clutter = [_cutout(rng, int(rng.integers(60, 160)), int(rng.integers(60, 160))) for _ in range(CLUTTER)]

    def landmark(self, number: int) -> Instance:
        rng = np.random.default_rng([self.settings.seed, 14, number])
        if rng.random() < self.settings.facades:
            backdrop = (_far_layer(rng),) if rng.random() < 0.4 else ()
            return Instance(super().landmark(number), backdrop)
        layers = [_far_layer(rng), *(_near_layer(rng) for _ in range(int(rng.integers(1, 6))))]
        return Instance(None, tuple(sorted(layers, key=lambda layer: layer.depth)))

    def photograph(self, number: int, view: int, landmark: Instance) -> bytes:
        rng = np.random.default_rng([self.settings.seed, 15, number, view])
        # Easy and hard views of everything: only where some pairs are easy does a hard one have a known partner.
        difficulty = self.settings.difficulty * rng.uniform(0.25, 1.1)
        night = bool(rng.random() < self.settings.night)
        size = SIZES[int(rng.integers(len(SIZES)))]
        width, height = int(size * PHOTO_WIDTH), int(size * PHOTO_HEIGHT)
        if rng.random() < 0.3:
            width, height = height, width
        camera = _camera(rng, difficulty, width, height)
        photo = _sky(rng, night, width, height)
        for layer in landmark.layers:
            _paint(photo, camera, layer)
        if landmark.facade is not None:
            self._buildings(photo, rng, camera, landmark.facade, night)
        for _ in range(int(rng.poisson(self.settings.clutter * difficulty))):
            sprite = self.clutter[int(rng.integers(CLUTTER))]
            x, y = rng.uniform(-0.1, 0.9) * CANVAS_WIDTH, rng.uniform(0.1, 0.9) * CANVAS_HEIGHT
            _paint(photo, camera, Layer(sprite, x, y, rng.uniform(80, 260), rng.uniform(0.5, 1)))
        if rng.random() < self.settings.snow:
            _snow(photo, rng)
        if night and landmark.facade is None:
            photo = cv2.convertScaleAbs(photo, alpha=rng.uniform(0.25, 0.6))
        return develop(photo, rng, difficulty, night)


def _camera(rng: Rng, difficulty: float, width: int, height: int) -> Camera:
    angles = np.radians(rng.uniform(-1, 1, 3) * [62, 24, 16]) * difficulty
    target = (
        CANVAS_WIDTH * (0.5 + rng.uniform(-0.28, 0.28) * difficulty),
        CANVAS_HEIGHT * (0.55 + rng.uniform(-0.22, 0.2) * difficulty),
    )
    focal = max(width, height) * rng.uniform(1.0, 1.7)
    pixels_per_unit = max(width, height) / CANVAS_WIDTH * np.exp(rng.uniform(-0.75, 0.65) * difficulty)
    return Camera.towards(target, angles, pixels_per_unit, (width / 2, height / 2), focal)


def _sky(rng: Rng, night: bool, width: int, height: int) -> np.ndarray:
    sky = NIGHT_SKY if night else SKIES[int(rng.integers(len(SKIES)))] * rng.uniform(0.8, 1.06)
    fade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    photo = cv2.resize((1 - fade) * sky[0] + fade * sky[1], (width, height)).astype(np.uint8)
    clouds = fractal_noise(rng, height // 2, width // 2, 1.5) * np.float32(rng.uniform(0, 5 if night else 22))
    add_gray(photo, np.maximum(cv2.resize(clouds, (width, height)), -6))
    return photo


def _far_layer(rng: Rng) -> Layer:
    """A backdrop that fills the view."""
    scale = rng.uniform(1.6, 2.6)
    texture = draw_texture(rng, CANVAS_HEIGHT, CANVAS_WIDTH)
    sprite = Sprite(texture, np.full(texture.shape[:2], 255, np.uint8))
    x, y = (0.5 - scale / 2) * CANVAS_WIDTH, (0.5 - scale / 2) * CANVAS_HEIGHT
    return Layer(sprite, x, y, -rng.uniform(50, 420), scale)


def _near_layer(rng: Rng) -> Layer:
    width, height = int(rng.uniform(0.2, 0.8) * CANVAS_WIDTH), int(rng.uniform(0.2, 0.8) * CANVAS_HEIGHT)
    x, y = rng.uniform(-0.1, 0.75) * CANVAS_WIDTH, rng.uniform(0, 0.75) * CANVAS_HEIGHT
    return Layer(_cutout(rng, height, width), x, y, rng.uniform(-50, 140), 1.0)


def _cutout(rng: Rng, height: int, width: int) -> Sprite:
    return Sprite(draw_texture(rng, height, width), blob(rng, height, width))


def _paint(photo: np.ndarray, camera: Camera, layer: Layer) -> None:
    layer.sprite.paint(photo, camera.homography(layer.depth, layer.x, layer.y, layer.scale))


def _snow(photo: np.ndarray, rng: Rng) -> None:
    """White patches, most of them low in the photo; they do not stand on the scene, as snow of another day does not."""
    height, width = photo.shape[:2]
    cover = cv2.resize(fractal_noise(rng, height // 4, width // 4, 1.2), (width, height))
    cover += np.linspace(-2, 2, height, dtype=np.float32)[:, None] - np.float32(rng.uniform(-0.5, 1))
    alpha = np.clip(cover * 200, 0, 235).astype(np.uint8)
    white = cv2.multiply(np.full_like(photo, 238), cv2.merge([alpha] * 3), scale=1 / 255)
    blend(photo, cv2.merge([*cv2.split(white), alpha]))
