"""The images to extract: of a folder or a text list, and boxes of queries."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ames_jax.data.lists import read_lines, read_list
from ames_jax.data.release_pickles import read_ground_truth
from ames_jax.extraction.images import SUFFIXES, UNREAD
from ames_jax.runtime.errors import UserError

Box = tuple[float, float, float, float]
MOST = 1e9  # pixels, of an edge of a box


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """One image: its id, its file, its label (-1: none), and the part that is looked at (None: all of it)."""

    id: str
    path: Path
    label: int = -1
    box: Box | None = None


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The images of a run in their order.

    Attributes:
      root: folder that the ids are relative to. files: the images.
      label_names: name of each label, or None where labels are numbers of a list, or there are none.
    """

    root: Path
    files: list[ImageFile]
    label_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.files)


def list_images(
    images: Path, root: Path | None = None, boxes: Path | None = None, flag: str = "--images"
) -> ImageFiles:
    """The images of a folder or of a list.

    Args:
      images: a folder, of which all image files are taken, sub-folders and links to folders included, in the order of
        their names; an image's label is the number of its first sub-folder. What else lies there is counted in a line on
        stderr, hidden files aside. Or a text file with one line per image: `path`, or as in the
        release `path,width,height` or `path,label,width,height`, or `path,label`.
      root: folder that the paths of a list are relative to; by default the list's.
      boxes: what `read_boxes` takes, one box per image.
      flag: what errors call the first argument.

    Raises:
      UserError: there is nothing, no image in it, a line that cannot be read, a name that cannot be an id, or another
        number of boxes.
    """
    if images.is_dir():
        if root is not None:
            raise UserError(f"--root={root} belongs to a list, but {flag}={images} is a folder")
        found = _of_folder(images, flag)
    elif images.is_file():
        found = _of_list(images, root or images.parent)
    else:
        raise UserError(f"{flag}={images}: no such folder or list")
    _refuse_bad_ids(f"{flag}={images}", found.files)
    return found if boxes is None else _with_boxes(found, boxes)


def _of_folder(folder: Path, flag: str) -> ImageFiles:
    paths, left_out = _files_in(folder)
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        print(f"{folder}: left out {kinds}", file=sys.stderr)
    shown = sorted(paths, key=Path.as_posix)
    if not shown:
        raise UserError(f"{flag}={folder}: no image in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    names = sorted({path.parts[0] for path in shown if len(path.parts) > 1})
    number = {name: label for label, name in enumerate(names)}
    labels = [number[path.parts[0]] if len(path.parts) > 1 else -1 for path in shown]
    files = [ImageFile(path.as_posix(), folder / path, label) for path, label in zip(shown, labels)]
    return ImageFiles(folder, files, names or None)


def _files_in(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Image files of a folder, relative to it, and how many files of other kinds there are; hidden ones count as neither."""
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    above = {str(folder): (folder.resolve(),)}  # folder → itself and those that it lies in, links resolved
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_stop):
        for name in list(folders):
            real = Path(place, name).resolve()
            if name.startswith(".") or real in above[place]:
                folders.remove(name)
                left_out["links to a folder that they lie in"] += not name.startswith(".")
            else:
                above[os.path.join(place, name)] = (*above[place], real)
        for name in (name for name in names if not name.startswith(".")):
            path = Path(place, name)
            kind = _why_left_out(path)
            if kind:
                left_out[kind] += 1
            else:
                found.append(path.relative_to(folder))
    return found, +left_out


def _stop(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}")  # it would be left out without a word


def _why_left_out(path: Path) -> str | None:
    """The kind of a file that is not extracted; None of an image file."""
    suffix = path.suffix.lower()
    if not path.is_file():
        return "links to nothing" if path.is_symlink() and not path.exists() else "that are no regular files"
    if suffix in UNREAD:
        return f"{suffix} (pip install {UNREAD[suffix]} reads them)"
    return None if suffix in SUFFIXES else f"{suffix or 'without an ending'} (no pictures)"


def _of_list(path: Path, root: Path) -> ImageFiles:
    listed = read_list(path)
    labels = [-1] * len(listed) if listed.labels is None else listed.labels.tolist()
    return ImageFiles(root, [ImageFile(name, root / name, label) for name, label in zip(listed.ids, labels)])


def _refuse_bad_ids(where: str, files: Sequence[ImageFile]) -> None:
    seen: set[str] = set()
    for file in files:
        name = file.id
        try:
            name.encode()
        except UnicodeEncodeError:  # as Python holds the bytes of such a name
            raise UserError(f"{where}: the name {os.fsencode(name)!r} is not UTF-8; rename it") from None
        if name in seen:
            raise UserError(f"{where}: {name} is listed twice; every image needs an id of its own")
        if name.splitlines() != [name] or "\0" in name:
            raise UserError(f"{where}: the name {name!r} holds a line break; rename it")
        if ".." in PurePath(name).parts:
            raise UserError(f"{where}: {name} leads out of --root by '..'; give --root=a folder above all images")
        seen.add(name)


def _with_boxes(images: ImageFiles, path: Path) -> ImageFiles:
    boxes = read_boxes(path)
    if len(boxes) != len(images):
        raise UserError(f"--boxes={path}: {len(boxes)} boxes for {len(images)} images")
    files = [dataclasses.replace(file, box=box) for file, box in zip(images.files, boxes)]
    return dataclasses.replace(images, files=files)


def read_boxes(path: Path) -> list[Box | None]:
    """Boxes (left, top, right, bottom in pixels) of images in their order.

    Args:
      path: `gnd_*.pkl` of ROxford or RParis, with a `bbx` per query; or a text file with one line per image, of four numbers
        with commas between, or empty for the whole image.

    Raises:
      UserError: the file holds something else.
    """
    if path.suffix == ".pkl":
        queries = read_ground_truth(path)[0]
        return [_box_of(query.get("bbx"), f"{path} query {i}") for i, query in enumerate(queries)]
    lines = [line.strip() for line in read_lines(path)]
    return [_box_of(line.split(","), f"{path} line {i + 1}") if line else None for i, line in enumerate(lines)]


def _box_of(values: Any, where: str) -> Box:
    try:
        left, top, right, bottom = map(float, values)
    except (TypeError, ValueError):
        left = right = top = bottom = np.nan
    if not (-MOST < left < right < MOST and -MOST < top < bottom < MOST):
        found = str(values)[:80]
        raise UserError(f"--boxes={where}: expected left,top,right,bottom in pixels, found {found}")
    return left, top, right, bottom
