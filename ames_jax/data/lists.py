"""Text lists with one line per image. Every such list is parsed here.

    id                      pictures to extract
    id,label                with an integer label, -1 for an image that has none
    id,width,height         test images of the release
    id,label,width,height   training images of the release

An id may hold commas, so the numbers are counted from the end, and the first line says how many every line has. Lines end
with a line feed or, as on Windows, a carriage return and a line feed; a byte order mark at the start is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ames_jax.runtime.checksums import check, note_unchecked
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_whole, write_file

FORMS = ("id", "id,label", "id,width,height", "id,label,width,height")
RELEASE = FORMS[2:]
NUMBER = re.compile(r"-?[0-9]{1,18}")  # fits 64 bits


@dataclass(frozen=True)
class ImageList:
    """Images in their order: ids, and int64 labels [N] and sizes (width, height) [N, 2], None where a list has none."""

    ids: list[str]
    labels: np.ndarray | None
    sizes: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)


def read_list(path: str | Path, forms: Collection[str] = FORMS) -> ImageList:
    """Reads a list of one of these forms.

    Raises UserError: the file is missing, empty, no text or of another form; names the first line that is not as line 1.
    """
    path = Path(path)
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the list is empty")
    columns = _trailing_numbers(lines[0])
    if FORMS[columns] not in forms:
        expected = " or ".join(f"`{form}`" for form in forms)
        raise UserError(f"{path} line 1: expected {expected}, found {lines[0]!r}")
    numbers = np.empty((len(lines), columns), np.int64)
    ids = []
    for row, line in enumerate(lines):
        name, *rest = (part.strip() for part in line.rsplit(",", columns)) if columns else [line.strip()]
        complete = len(rest) == columns and all(map(NUMBER.fullmatch, rest))
        if not complete or not name or (columns and name.endswith(",")):
            raise UserError(f"{path} line {row + 1}: expected `{FORMS[columns]}` as in line 1, found {line!r}")
        numbers[row] = [int(number) for number in rest]
        ids.append(name)
    labels = numbers[:, 0] if "label" in FORMS[columns] else None
    return ImageList(ids, labels, numbers[:, -2:] if "width" in FORMS[columns] else None)


def refuse_repeats(ids: Sequence[str], where: str | Path) -> None:
    """Raises UserError, naming `where` and the first of them, where an id comes more than once."""
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in first:
            raise UserError(
                f"{where}: image {row + 1} has the id {name!r} of image {first[name] + 1}; every image needs an id of its own"
            )
        first[name] = row


def read_labels(path: str | Path) -> dict[str, str]:
    """Label by picture, of a list whose lines are `picture,label` or have a tab for the comma; both are any text.

    Raises UserError: the file is missing or no text, or a line is of another form.
    """
    labels = {}
    for row, line in enumerate(read_lines(path)):
        if line.strip():
            name, _, label = (part.strip() for part in line.rpartition("\t" if "\t" in line else ","))
            if not name or not label:
                raise UserError(f"{path} line {row + 1}: expected `picture,label`, found {line!r}")
            labels[name] = label
    return labels


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file without their ends; raises UserError where it is missing or not UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    check(path)
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; expected a text list with one line per image"
        ) from None
    note_unchecked(path)
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """Writes ids as we keep them, one per line; raises UserError for one that holds a line feed or NUL, or is no UTF-8."""
    for name in (name for name in ids if "\n" in name or "\0" in name):
        raise UserError(f"image id {name!r} holds a line break or NUL; ids are kept one per line: rename the image")
    try:
        write_file(path, "".join(f"{name}\n" for name in ids))
    except UnicodeEncodeError as error:  # as Python holds the bytes of a file name that is none
        start = error.object.rfind("\n", 0, error.start) + 1
        raise UserError(
            f"image id {error.object[start:].partition(chr(10))[0]!r} is not UTF-8; rename the image"
        ) from None


def read_ids(path: Path, count: int) -> list[str]:
    """The `count` ids that `write_ids` wrote; raises UserError where they are missing or of another number."""
    if not path.is_file():
        raise UserError(f"{path} is missing: what it belongs to was not written to its end; write it again")
    check(path)
    try:
        ids = read_whole(path).decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: byte {error.start} is not UTF-8; write it again") from None
    if len(ids) != count:
        raise UserError(f"{path}: {len(ids)} entries for {count} images; write it again")
    return ids


def _trailing_numbers(line: str) -> int:
    """The number of fields at the end of a line that are numbers: at most 3, and never the first one."""
    count = 0
    for field in reversed(line.split(",")[1:][-3:]):
        if not NUMBER.fullmatch(field.strip()):
            break
        count += 1
    return count
