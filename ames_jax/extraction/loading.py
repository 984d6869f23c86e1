"""A listed image → the pixels that a backbone takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ames_jax.extraction.backbone import Backbone
from ames_jax.extraction.images import crop, load_image
from ames_jax.extraction.listing import ImageFile
from ames_jax.runtime.errors import UserError


class LoadedImage(NamedTuple):
    """A picture in the backbone's size, the share of the file that it is (offset, size), and the file's width, height."""

    pixels: np.ndarray
    share: np.ndarray
    size: tuple[int, int]


def load(file: ImageFile, backbone: Backbone, skip_broken: bool = False) -> LoadedImage | str:
    """Reads one image, cut to its box; where it is broken, raises UserError, or gives the reason if such are skipped."""
    try:
        image = load_image(file.path)
        size = image.shape[1], image.shape[0]
        share = np.float32([[0, 0], [1, 1]])
        if file.box is not None:
            image, share = crop(image, file.box, file.path)
        return LoadedImage(backbone.fit(image), share, size)
    except UserError as error:
        if skip_broken:
            return str(error)
        raise UserError(f"{error}; or leave such images out with --skip-broken") from error
