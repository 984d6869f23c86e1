"""The interface of a backbone, which turns pictures into local and global descriptors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ames_jax.descriptors import DescriptorSet

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


class Backbone(Protocol):
    """Extracts descriptors; `extraction/backbones.py` lists those that there are."""

    name: str  # as in that list
    width: int  # values of a local descriptor
    global_width: int  # G, values of the global descriptor
    global_name: str  # what results call the global descriptor
    descriptors: int  # N, local descriptors of an image at most
    together: int  # images that `extract` is best given at a time
    settings: dict[str, Any]  # plain JSON; `open_backbone(**settings)` opens the same backbone again

    @classmethod
    def open(cls, **options: Any) -> Backbone:
        """The backbone of these options, which are keywords of `open_backbone`; raises UserError."""

    def fit(self, image: np.ndarray) -> np.ndarray:
        """The image in the size that `extract` reads; `extract` does this itself, loading threads may do it before."""

    def extract(self, images: Sequence[np.ndarray]) -> list[ExtractedImage]:
        """Descriptors of RGB images uint8 [H, W, 3], which may differ in size."""
