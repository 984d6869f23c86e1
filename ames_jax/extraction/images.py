"""Image files → upright RGB arrays, whatever the file holds; and resizing. Pillow decodes, OpenCV resizes."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ames_jax.runtime.errors import UserError

# Pillow refuses images as small as 179 million pixels, which panoramas and scans pass; this much takes 3 GB.
MOST_PIXELS = 300_000_000
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", "Corrupt EXIF")  # of Pillow, for each such picture; it is read as having none
# What Pillow reads once a package is installed and its module imported.
_PLUGINS = {
    ".heic": ("pillow_heif.HeifImagePlugin", "pillow-heif"),
    ".heif": ("pillow_heif.HeifImagePlugin", "pillow-heif"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
DRAWN = {"EPS", "WMF"}  # Pillow hands them to Ghostscript, or to the system
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF: bits of a value, what 0 means (0: white), and the kind of a value (2: signed).
_BITS, _MEANING, _KINDS, _SIGNED = 258, 262, 339, 2


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


# Suffix → what pip installs to read such pictures, for those that this Pillow does not read.
UNREAD = {suffix: package for suffix, (module, package) in _PLUGINS.items() if not _imports(module)}
if not features.check("avif"):
    UNREAD[".avif"] = "pillow>=11.3"
_ITS_OWN = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
)
SUFFIXES = frozenset((*_ITS_OWN, *_PLUGINS)) - UNREAD.keys()


def load_image(source: Path | BinaryIO, name: str | None = None, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The picture in a file, as a viewer shows it: RGB uint8 [H, W, 3], turned upright by its EXIF tag.

    Grey and CMYK become RGB, transparency is laid on white, more than 8 bits a channel are rounded to 8, and of an
    animation the first frame is taken. Floats count as 0 to 1.

    Args:
      source: a path or an open file.
      name: what errors call it (default: the path).
      most_pixels: a picture of more is refused before it is decoded.

    Raises:
      UserError: naming the file: it is missing, no regular file, no image, cut short, too large, or of values whose range
        is not known.
    """
    name = name or str(source)
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"{name}: {'a folder or a device, no image file' if source.exists() else 'no such image'}")
    try:
        with Image.open(source) as image:
            if image.width * image.height > most_pixels:
                raise UserError(
                    f"{name}: {image.width} × {image.height} pixels are more than {most_pixels:,}; shrink it"
                )
            if image.format in DRAWN:
                raise UserError(
                    f"{name}: {image.format} files are drawn by another program, which is not run; save it as PNG"
                )
            return decoded(image, name)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{name}: too large for the memory that is free; shrink it") from error
    except Exception as error:  # a damaged file can fail in any of Pillow's decoders, with any kind of error
        package = UNREAD.get(Path(name).suffix.lower())
        advice = f"pip install {package} reads such files" if package else "mend or remove it"
        unknown = isinstance(error, UnidentifiedImageError)  # whose text names the open file, not what is wrong
        reason = "of no format that is known" if unknown else " ".join(str(error).split())
        raise UserError(f"{name}: cannot be read as an image ({reason}); {advice}") from error


def decoded(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of a picture of Pillow as `load_image` gives them; name: what errors call it. Raises as Pillow does, too."""
    image.load()
    return np.asarray(_upright(_as_rgb(image, name), _orientation(image)))


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> object:
    """The EXIF tag of a decoded image."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged block fails in any part of its parser, and the picture itself may be whole
        return None


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith(("I", "F")) or (image.format == "TIFF" and _SIGNED in image.tag_v2.get(_KINDS, ())):
        return Image.fromarray(_to_8_bits(image, name)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image, name: str) -> np.ndarray:
    """Grey values of 9 to 16 bits or floats of 0..1 → uint8; Pillow's own conversion would cut them off at 255.

    Raises UserError where nothing says which value is white.
    """
    values, tags = np.asarray(image), image.tag_v2 if image.format == "TIFF" else {}
    white_first = tags.get(_MEANING) == 0  # Pillow turns such values around in 8 bits alone
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise UserError(f"{name}: values from {low:g} to {high:g}; expected floats of 0 to 1, or save it in 8 bits")
        return np.rint((1 - values if white_first else values) * 255.0).astype(np.uint8)
    unknown = image.mode == "I" and image.format != "PPM"  # which Pillow scales to 16 bits
    bits = tags.get(_BITS, (32 if unknown else 16,))[0]
    if bits > 16 or _SIGNED in tags.get(_KINDS, ()):
        sign = "signed" if _SIGNED in tags.get(_KINDS, ()) else "unsigned"
        raise UserError(f"{name}: {sign} integers of {bits} bits; which is white is not known: save it in 8 or 16 bits")
    grey = np.clip(np.rint(values * (255.0 / (2**bits - 1))), 0, 255).astype(np.uint8)
    return 255 - grey if white_first else grey


RESIZED = "OpenCV, area where it shrinks, bilinear where it grows"  # by what follows, as about.json keeps it


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
