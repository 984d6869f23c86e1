"""The landmarks' world: composes a photo of sky, street, neighbouring buildings, the landmark, and what stands before it."""

from __future__ import annotations

import cv2
import numpy as np

from ames_jax.scenes.camera import Camera
from ames_jax.scenes.drawing import Rng, Sprite, add_gray, blend, smooth_noise
from ames_jax.scenes.elements import Library
from ames_jax.scenes.facade import Landmark, Plane, build_landmark
from ames_jax.scenes.photo import develop
from ames_jax.scenes.settings import PHOTO_HEIGHT, PHOTO_WIDTH, Settings
from ames_jax.scenes.street import StreetItem, build_street

# Zenith and horizon (blue, green, red): clear, hazy, overcast, evening, pale.
SKIES = np.array(
    [
        [(215, 150, 85), (240, 220, 195)], [(220, 185, 145), (235, 228, 218)], [(190, 185, 180), (222, 220, 218)],
        [(170, 130, 120), (150, 195, 240)], [(228, 205, 180), (246, 240, 234)],
    ],
    np.float32,
)  # fmt: skip
NIGHT_SKY = np.array([(60, 35, 25), (75, 55, 50)], np.float32)
GROUNDS = np.array([(110, 115, 118), (95, 100, 105), (130, 145, 155), (85, 120, 105), (120, 135, 150)], np.float32)


class World:
    """Everything that landmarks share, drawn once in a process: library, neighbour buildings, street items."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.library = Library(settings.seed, settings.window_styles, settings.ornaments, settings.shared)
        self.street = build_street(settings.seed, settings.street_items)
        self.neighbours = [
            build_landmark(np.random.default_rng([settings.seed, 3, i]), self.library)
            for i in range(settings.neighbours)
        ]

    def landmark(self, number: int) -> Landmark:
        """Landmark `number`; the same number gives the same pixels."""
        return build_landmark(np.random.default_rng([self.settings.seed, 4, number]), self.library)

    def photograph(self, number: int, view: int, landmark: Landmark) -> bytes:
        """The JPEG file of view `view` of landmark `number`: a pure function of (settings, number, view)."""
        rng = np.random.default_rng([self.settings.seed, 5, number, view])
        difficulty = self.settings.difficulty
        night = bool(rng.random() < self.settings.night)
        camera = Camera.random(rng, difficulty)
        photo = _backdrop(rng, camera, landmark, night)
        self._buildings(photo, rng, camera, landmark, night)
        self._street(photo, rng, camera, landmark)
        return develop(photo, rng, difficulty, night)

    def _buildings(self, photo: np.ndarray, rng: Rng, camera: Camera, landmark: Landmark, night: bool) -> None:
        for side in (-1, 1):
            if rng.random() >= self.settings.neighbour_chance:
                continue
            neighbour = self.neighbours[int(rng.integers(len(self.neighbours)))]
            gap = rng.uniform(-5, 60)
            shift = landmark.left - gap - neighbour.right if side < 0 else landmark.right + gap - neighbour.left
            recess = rng.uniform(-60, 0)
            for plane in neighbour.planes:
                _paint_plane(photo, rng, camera, plane, night, shift, recess)
        for plane in landmark.planes:
            _paint_plane(photo, rng, camera, plane, night)

    def _street(self, photo: np.ndarray, rng: Rng, camera: Camera, landmark: Landmark) -> None:
        chosen = rng.integers(len(self.street), size=int(rng.poisson(self.settings.clutter))) if self.street else []
        items = [self.street[int(i)] for i in chosen]
        for item in sorted(items, key=lambda item: not item.hung):  # what hangs on the facade is behind the rest
            _paint_item(photo, rng, camera, landmark, item)
        for _ in range(int(rng.poisson(0.6 * self.settings.difficulty))):
            _tree(photo, rng)
        for _ in range(int(rng.poisson(1.6 * self.settings.difficulty))):
            _person(photo, rng)


def clear_sky(rng: Rng, night: bool, width: int, height: int, darkest: float) -> np.ndarray:
    """A photo uint8 [height, width, 3] that fades from zenith to horizon; by day as bright as `darkest` or brighter."""
    sky = NIGHT_SKY if night else SKIES[int(rng.integers(len(SKIES)))] * rng.uniform(darkest, 1.06)
    fade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    return cv2.resize((1 - fade) * sky[0] + fade * sky[1], (width, height)).astype(np.uint8)


def _backdrop(rng: Rng, camera: Camera, landmark: Landmark, night: bool) -> np.ndarray:
    photo = clear_sky(rng, night, PHOTO_WIDTH, PHOTO_HEIGHT, darkest=0.88)
    clouds = smooth_noise(rng, PHOTO_HEIGHT, PHOTO_WIDTH, int(rng.integers(4, 10)), 4 if night else 12)
    add_gray(photo, np.maximum(clouds, -4))
    far = camera.project(np.array([[x, landmark.ground, -900.0] for x in (-1500, 1900)]))
    horizon = int(np.clip(PHOTO_HEIGHT * 0.7 if far is None else far[:, 1].mean(), 0, PHOTO_HEIGHT - 2))
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))] * (0.45 if night else rng.uniform(0.75, 1.15))
    photo[horizon:] = ground.astype(np.uint8)
    add_gray(photo[horizon:], smooth_noise(rng, PHOTO_HEIGHT - horizon, PHOTO_WIDTH, 40, 6))
    return photo


def _paint_plane(
    photo: np.ndarray, rng: Rng, camera: Camera, plane: Plane, night: bool, shift: float = 0, recess: float = 0
) -> None:
    """Side walls first: of the two, the far one then disappears behind the front."""
    for side in plane.sides:
        box = [(side.top, side.back), (side.top, side.front), (side.bottom, side.front), (side.bottom, side.back)]
        colour = tuple(value * (0.4 if night else 1) for value in side.colour)
        _fill(photo, camera, [(side.x + shift, y, depth + recess) for y, depth in box], colour)
    sprite = _lit(plane, rng) if night else plane.sprite
    sprite.paint(photo, camera.homography(plane.depth + recess, shift))


def _lit(plane: Plane, rng: Rng) -> Sprite:
    """The plane at night: walls dark, some of the windows warm."""
    image, alpha = plane.sprite.levels[0][..., :3], plane.sprite.levels[0][..., 3]
    height, width = alpha.shape
    rooms = cv2.resize(rng.random((9, 12), dtype=np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    lamps = np.maximum(smooth_noise(rng, height, width, 4, 30), 0).clip(0, 120).astype(np.uint8)
    lamps = cv2.merge([cv2.convertScaleAbs(lamps, alpha=v) for v in (0.5, 0.8, 1.0)])
    dark = cv2.add(cv2.convertScaleAbs(image, alpha=0.4), lamps)
    glow = np.where(rooms < rng.uniform(0.1, 0.6), plane.glass, 0)
    glow = np.dstack([cv2.convertScaleAbs(glow, alpha=v / 255) for v in (120, 200, 245)] + [glow])
    blend(dark, glow)
    return Sprite(dark, alpha)


def _paint_item(photo: np.ndarray, rng: Rng, camera: Camera, landmark: Landmark, item: StreetItem) -> None:
    width, height = item.sprite.size
    scale = rng.uniform(0.8, 1.15)
    x = rng.uniform(landmark.left - 60, landmark.right + 60 - width * scale)
    if item.hung:
        x = float(np.clip(x, landmark.left, landmark.right - width * scale))
        y, depth = rng.uniform(0.35, 0.7) * landmark.ground, 3.0
    else:
        y, depth = landmark.ground - height * scale, rng.uniform(50, 170)
        start, end, near, far = x + 4, x + width * scale - 4, depth - 14, depth + 6
        shadow = [(start, near), (end, near), (end, far), (start, far)]
        _fill(photo, camera, [(x, landmark.ground, depth) for x, depth in shadow], (45, 45, 48))
    item.sprite.paint(photo, camera.homography(depth, x, y, scale))


def _fill(
    photo: np.ndarray, camera: Camera, corners: list[tuple[float, float, float]], colour: tuple[float, float, float]
) -> None:
    """A flat surface between world points (x, y, depth); none where it reaches far beside or behind the camera."""
    points = camera.project(np.array(corners))
    if points is not None and np.abs(points).max() < 10_000:
        cv2.fillConvexPoly(photo, points.astype(np.int32), colour, cv2.LINE_AA)


def _tree(photo: np.ndarray, rng: Rng) -> None:
    x, y, radius = rng.uniform(0, PHOTO_WIDTH), rng.uniform(0.55, 0.95) * PHOTO_HEIGHT, rng.uniform(18, 46)
    leaves = np.array([rng.uniform(20, 50), rng.uniform(60, 105), rng.uniform(35, 90)])
    cv2.line(photo, (int(x), int(y)), (int(x), int(y + 2 * radius)), (30, 45, 60), max(2, int(radius / 8)))
    for _ in range(int(rng.integers(40, 80))):
        at = np.array([x, y]) + rng.normal(0, 0.45, 2) * radius
        axes = int(radius * rng.uniform(0.08, 0.22)) + 1, int(radius * rng.uniform(0.06, 0.18)) + 1
        colour = tuple(float(v) for v in np.clip(leaves * rng.uniform(0.5, 1.5), 0, 255))
        cv2.ellipse(photo, (int(at[0]), int(at[1])), axes, rng.uniform(0, 180), 0, 360, colour, -1)


def _person(photo: np.ndarray, rng: Rng) -> None:
    x, height, foot = rng.uniform(0, PHOTO_WIDTH), rng.uniform(18, 55), rng.uniform(0.78, 1.02) * PHOTO_HEIGHT
    coat, legs = (tuple(float(v) for v in rng.uniform(20, high, 3)) for high in (190, 120))
    body, half = (int(height * 0.16), int(height * 0.3)), height * 0.1
    cv2.rectangle(photo, (int(x - half), int(foot - height * 0.3)), (int(x + half), int(foot)), legs, -1)
    cv2.ellipse(photo, (int(x), int(foot - height * 0.55)), body, 0, 0, 360, coat, -1)
    cv2.circle(photo, (int(x), int(foot - height * 0.92)), max(2, int(height * 0.09)), (120, 150, 200), -1)
