"""Images that arrive as bytes rather than as a folder: extracted in memory and added to an index, which keeps the pictures.

INDEX/uploads/ID    the picture as it came
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ames_jax.data.readers import MemoryReader
from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.stamps import content_stamp
from ames_jax.index.changes import change, changing
from ames_jax.index.collection import SearchIndex
from ames_jax.index.parts import NewImages
from ames_jax.index.searcher import Searcher
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file

FOLDER = "uploads"
WAIT_SECONDS = 10.0  # for another process that changes the index
# Ids of uploads are names of files below FOLDER, so no part of one may be "..", nor anything that a file system reads
# in a way of its own.
ID = re.compile(r"(?!.*[. ](/|$))\w[\w. +-]{0,99}(/\w[\w. +-]{0,99}){0,3}")


@dataclasses.dataclass(frozen=True)
class Upload:
    """A new image: its id, its picture RGB uint8 [H, W, 3], and the file as it came."""

    id: str
    picture: np.ndarray
    content: bytes


def check_id(image_id: str) -> None:
    """Raises UserError for an id that an upload may not have."""
    if not ID.fullmatch(image_id):
        raise UserError(
            f"{image_id[:60]!r} cannot be the id of an upload: expected letters, digits, dots, spaces and _ + -, not ending "
            "in a dot or space, in up to four parts with / between them"
        )


def upload_path(path: Path, image_id: str) -> Path:
    """The file in which the index at `path` keeps an uploaded picture; raises UserError for an id that has none."""
    check_id(image_id)
    return path / FOLDER / image_id


def add_uploads(searcher: Searcher, uploads: Sequence[Upload]) -> None:
    """Adds images to the searcher's index on disk, as one part; the open index stays as it is.

    Raises UserError: an id that no upload may have or that the index holds, another process that changes the index.
    """
    path = searcher.index.path
    files = [upload_path(path, upload.id) for upload in uploads]
    extracted = searcher.backbone.extract([upload.picture for upload in uploads])
    # Stored as extraction stores them, so that an image has the same bits whichever way it came.
    local = stack([_in_half_precision(image.local) for image in extracted], searcher.backbone.descriptors)
    images = NewImages(
        ids=[upload.id for upload in uploads],
        vectors=np.stack([image.global_descriptor for image in extracted]),
        reader=MemoryReader(local),
        source=FOLDER,
        pictures=[(len(uploads), _place(path))],
        stamps=np.array([_stamp(upload.content) for upload in uploads], np.uint64),
    )
    with changing(path, WAIT_SECONDS) as index:
        held = set(index.ids).intersection(images.ids)
        if held:
            raise UserError(f"{path} holds {min(held)!r} already; remove it first, or give another id")
        for file, upload in zip(files, uploads):
            write_file(file, upload.content)
        change(index, [images], packer=searcher.packer)


def remove_image(searcher: Searcher, image_id: str) -> None:
    """Removes an image from the searcher's index on disk, and its picture where that was uploaded.

    Raises UserError: the index does not hold it, or another process changes the index.
    """
    path = searcher.index.path
    with changing(path, WAIT_SECONDS) as index:
        [row] = index.rows([image_id])
        uploaded = is_upload(index, row)
        change(index, removed=np.array([row]), packer=searcher.packer)
    if uploaded:
        upload_path(path, image_id).unlink(missing_ok=True)


def is_upload(index: SearchIndex, row: int) -> bool:
    """True if an image was uploaded: the index then keeps its picture."""
    return index.place_of_picture(row) == _place(index.path)


def _place(path: Path) -> dict[str, str]:
    return {"folder": str((path / FOLDER).resolve()), "suffix": ""}


def _stamp(content: bytes) -> tuple[int, int, int, int]:
    """As `SearchIndex.stamps`; the time is not of interest, since no folder is compared with uploads."""
    size, *hashed = content_stamp(io.BytesIO(content))
    return size, 0, *hashed


def _in_half_precision(local: DescriptorSet) -> DescriptorSet:
    return DescriptorSet(local.features.astype(np.float16), np.ones(local.count, bool))
