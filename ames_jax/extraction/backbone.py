"""The interface of a backbone, which turns pictures into local and global descriptors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.images import RESIZED

STATISTICS_FILE = "sift_statistics.npz"


@dataclasses.dataclass(frozen=True)
class ExtractedImage:
    """Descriptors of one image.

    Attributes:
      local: N of them, strongest first: features float32 [N, width], xy float32 [N, 2] in 0..1, scale and weight
        float32 [N]; N is smaller than asked for (or 0) where an image has no more.
      global_descriptor: float32 [G], of length 1.
    """

    local: DescriptorSet
    global_descriptor: np.ndarray


def facts_seen(max_side: int, channels: str, files: Mapping[str, Path | None]) -> dict[str, Any]:
    """`Backbone.seen`; the files are read whole."""
    sha256 = {}
    for name, path in files.items():
        if path is not None:
            with path.open("rb") as file:
                sha256[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"max_side": max_side, "resized": RESIZED, "channels": channels, "sha256": sha256}


class Backbone(Protocol):
    """Extracts descriptors; `extraction/backbones.py` lists those that there are."""

    name: str  # as in that list
    width: int  # values of a local descriptor
    global_width: int  # G, values of the global descriptor
    global_name: str  # what results call the global descriptor
    descriptors: int  # N, local descriptors of an image at most
    together: int  # images that `extract` is best given at a time
    settings: dict[str, Any]  # plain JSON; `open_backbone(**settings)` opens the same backbone again
    # May be left out: plain JSON by which two extractions are compared, kept in about.json: max_side, how images are resized,
    # order of channels, SHA-256 of the files of weights.
    seen: dict[str, Any]

    @classmethod
    def open(cls, **options: Any) -> Backbone:
        """The backbone of these options, which are keywords of `open_backbone`; raises UserError."""

    def fit(self, image: np.ndarray) -> np.ndarray:
        """The image in the size that `extract` reads; `extract` does this itself, loading threads may do it before."""

    def extract(self, images: Sequence[np.ndarray]) -> list[ExtractedImage]:
        """Descriptors of RGB images uint8 [H, W, 3], which may differ in size."""
