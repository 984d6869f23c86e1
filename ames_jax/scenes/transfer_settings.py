"""Every number that decides what the transfer set looks like and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ames_jax.scenes.landmarks import Settings

NAME = "transfer scenes (rendered)"


@dataclass(frozen=True)
class TransferSettings(Settings):
    """Settings of the landmarks (facades, street and sizes are theirs) and what the scenes add; `landmarks` count scenes.

    facades: share of the instances that are a facade; the others are textured scenes.
    """

    name: ClassVar[str] = NAME
    folder: ClassVar[str] = "transfer"
    version: ClassVar[int] = 3  # raise by one with every change that alters pixels or descriptors
    max_side: ClassVar[int] = 640  # to which photographs are shrunk; the rendered ones are 320 to 560 wide
    spread: ClassVar[float] = 0.0125  # 8 pixels of a photo of 640
    keypoints: ClassVar[int] = 600  # as `extract` takes of a photo
    axes: ClassVar[bool] = True

    train_landmarks: int = 360
    validation_landmarks: int = 40
    test_landmarks: int = 40
    query_views: int = 2
    gallery_views: int = 6
    descriptors: int = 128

    difficulty: float = 1.0
    clutter: float = 1.0
    neighbour_chance: float = 0.2
    night: float = 0.15
    facades: float = 0.45
    snow: float = 0.12
