"""The world of the transfer set: composes photos of a facade or a textured scene, seen from anywhere, in any light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ames_jax.scenes.camera import Camera
from ames_jax.scenes.drawing import Rng, Sprite, add_gray, blend
from ames_jax.scenes.elements import draw_lettering, draw_ornament
from ames_jax.scenes.facade import Landmark
from ames_jax.scenes.photo import develop
from ames_jax.scenes.settings import CANVAS_HEIGHT, CANVAS_WIDTH, PHOTO_HEIGHT, PHOTO_WIDTH, Settings
from ames_jax.scenes.world import World, clear_sky

CLUTTER = 24  # things that stand before every instance alike, so that they mean nothing
LEAVES = 420  # of a texture of dead leaves, the large ones aside
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
    """The subject of the photos of one label: the facade, if it is one, and the layers behind and before it, far ones first."""

    facade: Landmark | None
    layers: tuple[Layer, ...]


class TransferWorld(World):
    """The landmarks' world with other instances and stronger photographs."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        rng = np.random.default_rng([settings.seed, 12])
        self.clutter = [_cutout(rng, int(rng.integers(60, 160)), int(rng.integers(60, 160))) for _ in range(CLUTTER)]

    def landmark(self, number: int) -> Instance:
        """Instance `number`: a facade or a textured scene."""
        rng = np.random.default_rng([self.settings.seed, 14, number])
        if rng.random() < self.settings.facades:
            backdrop = (_far_layer(rng),) if rng.random() < 0.4 else ()
            return Instance(super().landmark(number), backdrop)
        layers = [_far_layer(rng), *(_near_layer(rng) for _ in range(int(rng.integers(1, 6))))]
        return Instance(None, tuple(sorted(layers, key=lambda layer: layer.depth)))

    def photograph(self, number: int, view: int, landmark: Instance) -> bytes:
        """The JPEG file of view `view` of instance `number`: a pure function of (settings, number, view)."""
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
    photo = clear_sky(rng, night, width, height, darkest=0.8)
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


def draw_texture(rng: Rng, height: int, width: int) -> np.ndarray:
    """A texture of random kind, uint8 [height, width, 3]."""
    kind = rng.random()
    if kind < 0.6:
        picture = dead_leaves(rng, height, width)
    else:
        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = Palette(rng).colour(rng)
    if kind > 0.5:
        _strokes(picture, rng, int(rng.integers(8, 40)))
    for _ in range(int(rng.integers(0, 5))):
        _writing(picture, rng)
    relief = fractal_noise(rng, height, width, rng.uniform(0.7, 1.5)) * np.float32(rng.uniform(0.05, 0.35))
    return np.clip(picture * np.exp(relief)[..., None], 0, 255).astype(np.uint8)


def fractal_noise(rng: Rng, height: int, width: int, exponent: float) -> np.ndarray:
    """Noise with amplitudes ∝ frequency^-exponent (1: as in photographs), float32 [height, width], variance 1."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum * frequency**-exponent, (height, width))
    return (noise / max(noise.std(), 1e-9)).astype(np.float32)


def dead_leaves(rng: Rng, height: int, width: int) -> np.ndarray:
    """Opaque shapes that cover each other, areas by a power law: edges, corners and junctions at every scale.

    Lee, Mumford and Huang, IJCV 2001: with radii ∝ r⁻³ the statistics of images of natural scenes follow.
    """
    palette = Palette(rng)
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = palette.colour(rng)
    smallest, largest = rng.uniform(2.5, 6), rng.uniform(0.15, 0.45) * width
    # Inverse of the cumulative distribution of r⁻³ between the two; large ones first, so that small ones stay visible.
    uniform = rng.random(LEAVES)
    radii = (largest**-2 + uniform * (smallest**-2 - largest**-2)) ** -0.5
    few_large = rng.uniform(0.05, 0.3, 24) * largest
    radii = np.sort(np.concatenate([radii, few_large]))[::-1]
    order = np.argsort(-np.log(radii) + rng.normal(0, 0.5, len(radii)), kind="stable")
    shapes = rng.permutation(3)[: int(rng.integers(1, 4))]
    for radius in radii[order]:
        _leaf(picture, rng, radius, int(shapes[int(rng.integers(len(shapes)))]), palette.colour(rng))
    return picture


class Palette:
    """A few hues with a range of brightness, as the surfaces of one place have."""

    def __init__(self, rng: Rng) -> None:
        self.hues = rng.uniform(0.6, 1.4, (int(rng.integers(2, 6)), 3))
        self.middle, self.range = rng.uniform(60, 160), rng.uniform(0.3, 0.8)

    def colour(self, rng: Rng) -> tuple[float, float, float]:
        """One of its colours (blue, green, red)."""
        hue = self.hues[int(rng.integers(len(self.hues)))]
        return tuple(float(v) for v in np.clip(hue * self.middle * np.exp(rng.normal(0, self.range)), 4, 250))


def blob(rng: Rng, height: int, width: int) -> np.ndarray:
    """The outline of a thing: a mask uint8 [height, width], 255 inside; a box, an ellipse, a polygon or a rough shape."""
    mask = np.zeros((height, width), np.uint8)
    kind = int(rng.integers(4))
    if kind == 0:
        mask[2:-2, 2:-2] = 255
    elif kind == 1:
        cv2.ellipse(mask, (width // 2, height // 2), (width // 2 - 3, height // 2 - 3), 0, 0, 360, 255, -1)
    else:
        count = int(rng.integers(4, 9)) if kind == 2 else 40
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        reach = rng.uniform(0.55, 0.98, count)
        points = np.stack([np.cos(angles) * width, np.sin(angles) * height], 1) * reach[:, None] / 2
        cv2.fillPoly(mask, [(points + np.array([width, height]) / 2).astype(np.int32)], 255)
    return mask


def _leaf(picture: np.ndarray, rng: Rng, radius: float, shape: int, colour: tuple[float, float, float]) -> None:
    height, width = picture.shape[:2]
    x, y, turn = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 180)
    flat = rng.uniform(0.35, 1)
    if shape == 0:
        cv2.ellipse(
            picture, (int(x), int(y)), (int(radius) + 1, int(radius * flat) + 1), turn, 0, 360, colour, -1, cv2.LINE_AA
        )
        return
    corners = np.array([(-1, -flat), (1, -flat), (1, flat), (-1, flat)])
    if shape == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        corners = np.stack([np.cos(angles), flat * np.sin(angles)], 1)
    # Walls are upright more often than not.
    angle = np.radians(turn) if shape == 1 or rng.random() < 0.3 else rng.normal(0, 0.03)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = corners @ rotation.T * radius + [x, y]
    cv2.fillPoly(picture, [np.rint(points * 8).astype(np.int32)], colour, cv2.LINE_AA, 3)


def _strokes(picture: np.ndarray, rng: Rng, count: int) -> None:
    """Curved brush strokes, as of paint on a wall or of branches."""
    height, width = picture.shape[:2]
    palette, thickest = Palette(rng), rng.uniform(3, 26)
    for _ in range(count):
        start = rng.uniform(0, 1, 2) * [width, height]
        steps = rng.normal(0, 0.06 * width, (4, 2)) + rng.normal(0, 0.06 * width, 2)
        knots = np.vstack([start, start + np.cumsum(steps, 0)])
        t = np.linspace(0, 1, 24)[:, None]
        weights = [(1 - t) ** 4, 4 * t * (1 - t) ** 3, 6 * t**2 * (1 - t) ** 2, 4 * t**3 * (1 - t), t**4]
        curve = sum(weight * knot for weight, knot in zip(weights, knots))
        thickness = max(1, int(thickest * rng.uniform(0.2, 1)))
        cv2.polylines(
            picture, [curve.astype(np.int32)], rng.random() < 0.2, palette.colour(rng), thickness, cv2.LINE_AA
        )


def _writing(picture: np.ndarray, rng: Rng) -> None:
    """A line of letters, or an emblem."""
    height, width = picture.shape[:2]
    colour = np.float32(Palette(rng).colour(rng))
    if rng.random() < 0.6:
        ink = draw_lettering(rng, int(rng.integers(3, 10)), int(rng.integers(10, 48)))
    else:
        ornament = draw_ornament(rng, int(rng.integers(24, 90)))
        ink, colour = ornament.alpha, colour / 128 * ornament.gray[..., None]
    x, y = int(rng.uniform(0, 0.8) * width), int(rng.uniform(0, 0.8) * height)
    ink = ink[: height - y, : width - x, None]
    colour = colour[: height - y, : width - x] if colour.ndim == 3 else colour
    region = picture[y : y + ink.shape[0], x : x + ink.shape[1]]
    region[:] = np.clip(region + ink * (colour - region), 0, 255).astype(np.uint8)
