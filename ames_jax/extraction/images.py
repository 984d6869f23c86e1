"""Image files → upright RGB arrays, whatever the file holds; and resizing. Pillow decodes, OpenCV resizes."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ames_jax.runtime.errors import UserError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
)
# Pillow refuses images as small as 179 million pixels, which panoramas and scans pass; this much is 3 GB as RGB.
MOST_PIXELS = 1_000_000_000
Image.MAX_IMAGE_PIXELS = None


def load_image(source: Path | BinaryIO, name: str | None = None, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The picture in a file, as a viewer shows it: RGB uint8 [H, W, 3], turned upright by its EXIF tag.

    Grey and CMYK become RGB, transparency is laid on white, more than 8 bits a channel are rounded to 8, and of an
    animation the first frame is taken.

    Args:
      source: a path or an open file.
      name: what errors call it (default: the path).
      most_pixels: a picture of more is refused before it is decoded.

    Raises:
      UserError: naming the file: it is missing, no image, cut short, or too large.
    """
    name = name or str(source)
    try:
        with Image.open(source) as image:
            if image.width * image.height > most_pixels:
                raise UserError(
                    f"{name}: {image.width} × {image.height} pixels are more than {most_pixels:,}; shrink it"
                )
            return np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such image") from error
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any of Pillow's decoders, with any kind of error
        raise UserError(f"{name}: cannot be read as an image ({error}); mend or remove it") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits or floats of 0..1 → uint8; Pillow's own conversion would cut them off at 255."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    return np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W(, 3)] → uint8 [height, width(, 3)]: areas averaged where it shrinks, bilinear where it grows."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def shrink(image: np.ndarray, longer_side: int) -> np.ndarray:
    """The image with its longer side at most `longer_side` pixels and the shorter at least 1; smaller ones as they are."""
    scale = longer_side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return resize(image, height, width)


def crop(image: np.ndarray, box: tuple[float, float, float, float], source: object) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image inside a box, and where it lies.

    Args:
      image: [H, W, 3].
      box: left, top, right, bottom in pixels; rounded outwards and cut at the image's edges.
      source: what an error names.

    Returns:
      [h, w, 3], and float32 [2, 2]: offset and size of the part as a share of the image's width and height, so that
      a position xy of the part is offset + size · xy in the image.

    Raises:
      UserError: nothing of the image lies inside.
    """
    height, width = image.shape[:2]
    left, top = (max(0, int(np.floor(value))) for value in box[:2])
    right, bottom = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if left >= right or top >= bottom:
        raise UserError(f"{source}: box {tuple(box)} holds nothing of an image of {width} × {height} pixels")
    share = np.float32([[left, top], [right - left, bottom - top]]) / np.float32([width, height])
    return image[top:bottom, left:right], share
