"""Every number that decides what the embedded landmarks look like and how many there are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import ClassVar

from ames_jax.runtime.errors import UserError

NAME = "embedded landmarks (rendered)"
# Raise by one with every change that alters pixels or descriptors: sets cached before are then left alone.
RENDERER_VERSION = 1

PHOTO_HEIGHT, PHOTO_WIDTH = 240, 320
CANVAS_HEIGHT, CANVAS_WIDTH = 400, 480  # a facade seen from straight ahead; 480 canvas pixels are about 24 m


@dataclass(frozen=True)
class Settings:
    """What decides the content of the set. Two equal settings give the same set; `key()` names its folder.

    name, folder, version, spread, max_side, keypoints and axes belong to the kind of set: what it is called, where it
    lies, what its renderer draws, how keypoints are chosen (see `extraction.keypoints.detect`), the longest side of a
    photo, how many keypoints of a photo the statistics and its global descriptor are of (None: those that are stored),
    and whether that is a VLAD in local axes.
    """

    name: ClassVar[str] = NAME
    folder: ClassVar[str] = "landmarks"
    version: ClassVar[int] = RENDERER_VERSION
    spread: ClassVar[float] = 0.0
    max_side: ClassVar[int] = max(PHOTO_HEIGHT, PHOTO_WIDTH)
    keypoints: ClassVar[int | None] = None
    axes: ClassVar[bool] = False

    seed: int = 0
    train_landmarks: int = 448
    train_views: int = 8
    validation_landmarks: int = 48
    test_landmarks: int = 64
    query_views: int = 2
    gallery_views: int = 8
    descriptors: int = 128
    vlad_centres: int = 12  # few on purpose: an imperfect global search leaves work to re-ranking

    shared: float = 0.75  # chance that a window style or ornament comes from the library all landmarks share
    difficulty: float = 0.3  # 0 = straight-on and even light, 1 = the strongest change of view and light
    clutter: float = 1.4  # mean number of street items (from one small pool) in a photo
    neighbour_chance: float = 0.35  # for each side of the landmark
    night: float = 0.05  # share of photos taken at night, with lit windows
    window_styles: int = 14
    ornaments: int = 24
    street_items: int = 24
    neighbours: int = 24

    def __post_init__(self) -> None:
        """Raises UserError for a value that no set can be built from, naming it."""
        for name, value in asdict(self).items():
            if isinstance(self.__dataclass_fields__[name].default, int):
                lowest = 0 if name == "seed" else 2 if name == "train_views" else 1
                if not isinstance(value, int) or value < lowest:
                    raise UserError(f"embedded landmarks: {name} = {value!r}, expected a whole number from {lowest}")
            elif not 0 <= value <= (20 if name == "clutter" else 1):
                raise UserError(f"embedded landmarks: {name} = {value!r}, expected a number from 0 to 1 (clutter: 20)")

    @property
    def detected(self) -> int:
        """Keypoints found in a photo at most; the strongest `descriptors` of them are stored."""
        return max(self.keypoints or 0, self.descriptors)

    def key(self) -> str:
        """Ten hex digits that change with any setting and with the renderer version."""
        content = json.dumps({"version": self.version, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:10]
