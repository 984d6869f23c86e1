"""Every number that decides what a rendered data set looks like and how large it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ames_jax.runtime.errors import UserError, did_you_mean

PHOTO_HEIGHT, PHOTO_WIDTH = 240, 320
CANVAS_HEIGHT, CANVAS_WIDTH = 400, 480  # a facade seen from straight ahead; 480 canvas pixels are about 24 m

# Fields that belong to the kind of set: they change together with `version` alone, which stands for all of them in the key.
OF_THE_KIND = ("name", "folder", "version", "spread", "max_side", "keypoints", "axes")


@dataclass(frozen=True)
class Settings:
    """The settings of a set, by default of the embedded landmarks. Two equal settings give the same set.

    Attributes:
      name, folder: what results call the set, and the folder it lies in; "transfer" is photographed by a `TransferWorld`.
      version: raise it by one with every change that alters pixels or descriptors; sets cached before are then left alone.
      spread: how far apart keypoints lie (see `extraction.keypoints.detect`).
      max_side: the longer side to which photos are shrunk before extraction.
      keypoints: how many keypoints of a photo the statistics and its global descriptor are of; None: the stored ones.
      axes: whether the global descriptor is a VLAD in local axes.
    """

    name: str = "embedded landmarks (rendered)"
    folder: str = "landmarks"
    version: int = 1
    spread: float = 0.0
    max_side: int = max(PHOTO_HEIGHT, PHOTO_WIDTH)
    keypoints: int | None = None
    axes: bool = False

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
    facades: float | None = None  # of "transfer" alone: share of the instances that are a facade, not a textured scene
    snow: float | None = None  # likewise: share of photos with snow

    def __post_init__(self) -> None:
        """Raises UserError for a value that no set can be built from, naming it."""
        for name, value in self.content().items():
            if isinstance(self.__dataclass_fields__[name].default, int):
                lowest = 0 if name == "seed" else 2 if name == "train_views" else 1
                if not isinstance(value, int) or value < lowest:
                    raise UserError(f"{self.name}: {name} = {value!r}, expected a whole number from {lowest}")
            elif not 0 <= value <= (20 if name == "clutter" else 1):
                raise UserError(f"{self.name}: {name} = {value!r}, expected a number from 0 to 1 (clutter: 20)")

    @property
    def detected(self) -> int:
        """Most keypoints found in a photo; the strongest `descriptors` of them are stored."""
        return max(self.keypoints or 0, self.descriptors)

    def content(self) -> dict[str, Any]:
        """The numbers of the set, without the fields of its kind and those that it does not have."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in OF_THE_KIND and fields[name] is not None}

    def key(self) -> str:
        """Ten hexadecimal digits that change with any number of the set and with the renderer's version."""
        content = json.dumps({"version": self.version, **self.content()}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:10]


LANDMARKS = Settings()
TRANSFER = Settings(
    name="transfer scenes (rendered)",
    folder="transfer",
    version=3,
    spread=0.0125,  # 8 pixels of a photo of 640
    max_side=640,  # to which photographs are shrunk; the rendered ones are 320 to 560 wide
    keypoints=600,  # as `extract` takes of a photo
    axes=True,
    train_landmarks=360,
    validation_landmarks=40,
    test_landmarks=40,
    gallery_views=6,
    difficulty=1.0,
    clutter=1.0,
    neighbour_chance=0.2,
    night=0.15,
    facades=0.45,
    snow=0.12,
)
PRESETS = {settings.folder: settings for settings in (LANDMARKS, TRANSFER)}


def preset(name: str) -> Settings:
    """The settings called "landmarks" or "transfer"; raises UserError for another name."""
    if name not in PRESETS:
        raise UserError(f"no rendered set {name!r}: expected {' or '.join(PRESETS)}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
