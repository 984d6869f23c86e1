"""SIFT keypoints of a grey image by OpenCV, strongest first; no JAX here, so worker processes start fast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

SIFT_WIDTH = 128
# Lower than OpenCV's 0.04: dark and blurred photos then still yield enough keypoints, and the strongest stay the same.
CONTRAST_THRESHOLD = 0.02
# Keypoints looked at for each one asked for, where they are to lie apart.
CANDIDATES = 4


@dataclass(frozen=True)
class Keypoints:
    """N keypoints by falling strength.

    histogram: uint8 [N, 128], SIFT as OpenCV gives it; xy: float32 [N, 2], share of the image's width and height;
    scale: float32 [N], diameter in pixels; weight: float32 [N], response of the detector.
    """

    histogram: np.ndarray
    xy: np.ndarray
    scale: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.weight)


def detect(image: np.ndarray, count: int, spread: float = 0.0) -> Keypoints:
    """The `count` strongest SIFT keypoints of a grey image, fewer (or none) where it has fewer.

    Args:
      image: uint8 [H, W].
      count: most keypoints to return.
      spread: smallest distance between two of them, as a share of the longer side; 0 for none. A strong spot yields many
        keypoints that say the same; where only some tens are kept, the picture is then better covered.

    Raises:
      ValueError: when the image is not a grey uint8 image.
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"expected a grey image, uint8 [H, W]; found {image.dtype} {list(image.shape)}")
    if min(image.shape) < 2:
        return _empty()
    points, histogram = _detector(count * CANDIDATES if spread else count).detectAndCompute(image, None)
    if not points:
        return _empty()
    xy = np.array([point.pt for point in points], np.float32)
    scale = np.array([point.size for point in points], np.float32)
    angle = np.array([point.angle for point in points], np.float32)
    weight = np.array([point.response for point in points], np.float32)
    # Equal responses are common (one spot, two orientations): the full order keeps the result independent of OpenCV's.
    order = np.lexsort((angle, scale, xy[:, 0], xy[:, 1], -weight))
    height, width = image.shape
    order = (_apart(xy, order, count, spread * max(height, width)) if spread else order)[:count]
    xy = (xy + 0.5) / np.float32([width, height])
    return Keypoints(histogram[order].astype(np.uint8), np.clip(xy, 0, 1)[order], scale[order], weight[order])


def _apart(xy: np.ndarray, order: np.ndarray, count: int, distance: float) -> np.ndarray:
    """The first `count` of `order` that lie `distance` pixels from those before them; fewer where there are no more."""
    kept: list[int] = []
    places = np.full((count, 2), np.inf, np.float32)
    for row in order:
        if (np.square(places[: len(kept)] - xy[row]).sum(1) >= distance**2).all():
            places[len(kept)] = xy[row]
            kept.append(row)
            if len(kept) == count:
                break
    return np.array(kept)


@lru_cache(maxsize=4)
def _detector(count: int) -> Any:
    import cv2

    return cv2.SIFT_create(nfeatures=count, contrastThreshold=CONTRAST_THRESHOLD)


def _empty() -> Keypoints:
    none = np.zeros(0, np.float32)
    return Keypoints(np.zeros((0, SIFT_WIDTH), np.uint8), np.zeros((0, 2), np.float32), none, none)
