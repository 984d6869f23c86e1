"""Small pictures of the indexed images, kept in the index: pages show them also where the pictures have moved.

INDEX/thumbnails/XX/DIGEST.jpg    of the id; its time of change is that of the picture it was made from
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from ames_jax.extraction.images import load_image, shrink
from ames_jax.index.collection import SearchIndex
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import whole_file

FOLDER, SIDE, QUALITY = "thumbnails", 320, 82  # pixels of the longer side


def thumbnail(index: SearchIndex, row: int, pictures: Path | None = None) -> bytes:
    """A JPEG of an image: the kept one, or one made now of its picture, and kept where the index may be written.

    pictures: folder of the index's pictures, where they have moved. Raises UserError where neither is there.
    """
    kept = place(index.path, index.ids[row])
    picture = index.picture(row, pictures)
    changed = picture.stat().st_mtime_ns if picture and picture.is_file() else None
    if kept.is_file() and changed in (None, kept.stat().st_mtime_ns):
        return kept.read_bytes()
    content = jpeg(load_image(index.picture_path(row, pictures)), SIDE)
    with suppress(OSError), whole_file(kept) as partial:  # an index on a read-only disk
        partial.write_bytes(content)
        os.utime(partial, ns=(changed, changed))
    return content


def is_kept(index: SearchIndex, row: int) -> bool:
    """True if the index holds a thumbnail of an image."""
    return place(index.path, index.ids[row]).is_file()


def place(path: Path, name: str) -> Path:
    """The file in which the index at `path` keeps the thumbnail of the image `name`."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return path / FOLDER / digest[:2] / f"{digest}.jpg"


def jpeg(image: np.ndarray, side: int) -> bytes:
    """A picture RGB uint8 [H, W, 3] as JPEG, its longer side at most `side` pixels."""
    bgr = cv2.cvtColor(shrink(image, side), cv2.COLOR_RGB2BGR)
    done, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:  # JPEG knows no side of more than 65,535 pixels
        raise UserError(f"a picture of {image.shape[1]} × {image.shape[0]} pixels cannot be shown")
    return content.tobytes()
