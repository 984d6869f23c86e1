"""The photographer's place: a pinhole camera in front of a facade, random per photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ames_jax.scenes.drawing import Rng
from ames_jax.scenes.settings import CANVAS_HEIGHT, CANVAS_WIDTH, PHOTO_HEIGHT, PHOTO_WIDTH

FOCAL = 420.0  # photo pixels


@dataclass(frozen=True)
class Camera:
    """Maps world points (x, y, depth before the facade, all in facade canvas pixels) to photo pixels."""

    matrix: np.ndarray  # [3, 4]: intrinsics · [rotation | translation], z axis pointing away from the camera

    @classmethod
    def random(cls, rng: Rng, difficulty: float) -> Camera:
        """A view of the facade of a landmark; difficulty 0 is straight-on."""
        yaw, pitch, roll = np.radians(rng.uniform(-1, 1, 3) * [50, 14, 7]) * difficulty
        pitch += np.radians(4)  # people look up at buildings
        target_x = CANVAS_WIDTH * (0.5 + rng.uniform(-0.3, 0.3) * difficulty)
        target_y = CANVAS_HEIGHT * (0.6 + rng.uniform(-0.22, 0.18) * difficulty)
        pixels_per_unit = 0.62 * np.exp(rng.uniform(np.log(1 - 0.5 * difficulty), np.log(1 + 0.8 * difficulty)))
        centre_x = PHOTO_WIDTH / 2 + rng.uniform(-30, 30) * difficulty
        centre_y = PHOTO_HEIGHT / 2 + rng.uniform(-20, 20) * difficulty
        return cls.towards((target_x, target_y), (yaw, pitch, roll), pixels_per_unit, (centre_x, centre_y), FOCAL)

    @classmethod
    def towards(
        cls,
        target: tuple[float, float],
        angles: np.ndarray | tuple[float, float, float],
        pixels_per_unit: float,
        centre: tuple[float, float],
        focal: float,
    ) -> Camera:
        """Looks at `target` on the facade under the angles yaw, pitch, roll (radians), seen at `centre` of the photo."""
        rotation = _rotation(*angles)
        translation = rotation @ [-target[0], -target[1], 0] + [0, 0, focal / pixels_per_unit]
        intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        return cls(intrinsics @ np.column_stack([rotation, translation]))

    def homography(self, depth: float, x: float = 0, y: float = 0, scale: float = 1) -> np.ndarray:
        """Pixels of a sprite, whose corner stands at (x, y) `depth` before the facade, to photo pixels: [3, 3]."""
        flat = np.column_stack([self.matrix[:, 0], self.matrix[:, 1], self.matrix[:, 3] - depth * self.matrix[:, 2]])
        return flat @ np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])

    def project(self, points: np.ndarray) -> np.ndarray | None:
        """World points (x, y, depth) [N, 3] → photo pixels [N, 2]; None where one is behind the camera."""
        world = np.column_stack([points[:, 0], points[:, 1], -points[:, 2], np.ones(len(points))])
        image = world @ self.matrix.T
        if image[:, 2].min() < 20:
            return None
        return image[:, :2] / image[:, 2:]


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    around_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return around_z @ around_x @ around_y
