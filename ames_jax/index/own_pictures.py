"""A query that is itself a picture of the index: known by its path, or else by its content, wherever it comes from."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.extraction.stamps import content_stamp
from ames_jax.index.collection import SearchIndex

# Global descriptors of equal pictures are equal, so a picture is among the first that it finds.
HEAD = 10


@dataclasses.dataclass(frozen=True)
class SentPicture:
    """A picture that came as a file without a path.

    pixels: RGB uint8 [H, W, 3], in any size; content: `content_stamp` of the file.
    """

    pixels: np.ndarray
    content: tuple[int, int, int]


def may_be_own(query: Any) -> bool:
    """True for queries that are files; of arrays and descriptors the file is not known."""
    return isinstance(query, str | Path | SentPicture)


def own_row(index: SearchIndex, query: Any, rows: np.ndarray, folder: Path | None = None) -> int | None:
    """The row of the image whose picture a query is, byte for byte; None where it is of none.

    rows: int [n], of the first stage's list for the query, −1 where that is short; folder: of the index's pictures, where they
    have moved.
    """
    if not may_be_own(query):
        return None
    if not isinstance(query, SentPicture):
        row = index.row_of_picture(Path(query), folder)
        if row is not None:
            return row
    head = rows[:HEAD][rows[:HEAD] >= 0]
    size = query.content[0] if isinstance(query, SentPicture) else os.stat(query).st_size
    for row, (known, _, *hashed) in zip(head.tolist(), index.stamps(head).tolist()):
        place = None if known else index.picture(row, folder)
        with suppress(OSError):  # a picture that is gone is not this one
            if size != (os.stat(place).st_size if place else known):
                continue
            if _content(query) == (_content(place) if place else (known, *hashed)):
                return row
    return None


def _content(file: str | Path | SentPicture) -> tuple[int, int, int]:
    if isinstance(file, SentPicture):
        return file.content
    with open(file, "rb") as opened:
        return content_stamp(opened)
