"""Queries of every kind as what a backbone reads: pictures from files, arrays of any library, or Pillow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ames_jax.descriptors import DescriptorSet, as_array, validate
from ames_jax.extraction.backbone import ExtractedImage
from ames_jax.extraction.images import decoded, load_image
from ames_jax.model.kinds import Config
from ames_jax.runtime.errors import UserError

EXPECTED = "expected a picture file, an RGB or grey picture [H, W, 3] or [H, W], ExtractedImage or DescriptorSet"
# Lengths of a global descriptor within this of 1 are rounding.
LENGTH_TOLERANCE = 1e-2


def as_picture(query: Any) -> np.ndarray:
    """The picture of a query, RGB uint8 [H, W, 3].

    Args:
      query: a file; a picture of Pillow; or an array of NumPy, JAX or PyTorch: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]
        (transparency on white), or with the channels first. Floats are 0..1, or 0..255 where any is above 1; uint16 is scaled.

    Raises:
      UserError: a file that cannot be read, or an array that is no picture.
    """
    if isinstance(query, str | Path):
        return load_image(Path(query))
    if isinstance(query, Image.Image):
        return decoded(query, "a query") if query.width and query.height else _channels_last(np.asarray(query))
    try:
        pixels = as_array(query, "a query")
    except UserError as error:
        raise UserError(f"{error}: {EXPECTED}") from error
    return _as_rgb(_as_bytes(_channels_last(pixels)))


def check_global(query: ExtractedImage, width: int, name: str) -> np.ndarray:
    """The global descriptor of a query, float32 [width]; raises UserError unless it is one of length 1 (or 0)."""
    vector = as_array(query.global_descriptor, "the query's global descriptor").astype(np.float32)
    if vector.shape != (width,):
        raise UserError(
            f"the query's global descriptor has {vector.size} values, those of {name} {width}: it comes from another "
            "extraction"
        )
    length = float(np.linalg.norm(vector))
    if not (abs(length - 1) < LENGTH_TOLERANCE or length == 0):
        raise UserError(f"the query's global descriptor has length {length:.4g}, expected 1: normalise it")
    return vector


def check_local(query: DescriptorSet, config: Config) -> DescriptorSet:
    """Local descriptors of a query as the model of this configuration takes them, with `valid` always, so that queries with
    and without padding run one program; raises UserError as `descriptors.validate` does."""
    query = validate(query, config.descriptor_width, config.bits, "the query's local descriptors", axes=2)
    features = np.asarray(query.features)
    return DescriptorSet(features, np.ones(len(features), bool) if query.valid is None else np.asarray(query.valid))


def count_of(value: Any, name: str, most: float = math.inf, least: int = 1) -> int:
    """A count that was given from Python, as int; raises UserError, naming it, unless it is whole, and in `least`..`most`."""
    if not (
        isinstance(value, int | float | np.number)
        and least <= value <= most
        and value < math.inf
        and int(value) == value
    ):
        limit = "" if most == math.inf else f", at most {most}"
        raise UserError(f"{name}={value!r}: expected a whole number of at least {least}{limit}")
    return int(value)


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] with 1, 3 or 4 channels."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        raise UserError(f"a query of shape {list(pixels.shape)} is no picture: {EXPECTED}")
    return pixels


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 of the same shape."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return np.rint(pixels / 257.0).astype(np.uint8)
    if pixels.dtype.kind not in "iuf" or not np.isfinite(pixels).all():
        raise UserError(f"a query of type {pixels.dtype} that is no picture, or holds NaN: {EXPECTED}")
    least, most = float(pixels.min()), float(pixels.max())
    if least < 0 or most > 255:
        raise UserError(f"a query has values in {least:g}..{most:g}, expected 0..1 or 0..255: {EXPECTED}")
    scale = 255.0 if pixels.dtype.kind == "f" and most <= 1 else 1.0
    return np.rint(pixels * scale).astype(np.uint8)


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[-1] == 1:
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    if pixels.shape[-1] == 4:
        white = Image.new("RGBA", (pixels.shape[1], pixels.shape[0]), "white")
        return np.asarray(Image.alpha_composite(white, Image.fromarray(np.ascontiguousarray(pixels))).convert("RGB"))
    return np.ascontiguousarray(pixels)
