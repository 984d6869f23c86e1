"""Changes of an index: adding, removing, compacting. Each ends by replacing index.json; before that nobody sees any of it,
and whoever has the old version open goes on with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.shards import read_about
from ames_jax.data.store import Packer
from ames_jax.index.building import Descriptors, files_of_index
from ames_jax.index.collection import SearchIndex, picture_of
from ames_jax.index.index_json import GLOBAL, publish, recorded
from ames_jax.index.parts import NewImages, remove_leftovers, write_images
from ames_jax.model.packing import BitPacker
from ames_jax.runtime.cache import home
from ames_jax.runtime.checksums import facts_of
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock, write_array

# Of all stored images, the share of removed ones above which their space is given back.
MOST_REMOVED = 0.25
# Parts above which the small ones are joined: each is a search of its own.
MOST_PARTS = 8
# Of the settings of an extraction, files, which may move.
FILES = {"weights", "detector"}


@contextmanager
def changing(path: str | Path, wait_seconds: float = 0) -> Iterator[SearchIndex]:
    """The index at `path`, for this process alone to change; raises UserError where another one is at it.

    What a killed change left to be done is done first.
    """
    path = Path(path)
    with lock(path, home(), wait_seconds):
        index = SearchIndex.open(path)
        remove_leftovers(index.path, index.facts)
        yield _compacted(index)


def add_images(path: str | Path, descriptors: Descriptors) -> int:
    """Adds the images that the index does not hold yet, by id; returns how many that were.

    Raises UserError: no index, another process changes it, descriptors of another extraction, an id that stands for another
    picture in the index.
    """
    with changing(path) as index:
        refuse_another_extraction(index, descriptors)
        _refuse_another_picture(index, descriptors)
        known = set(index.ids)
        rows = np.array([row for row, name in enumerate(descriptors.ids) if name not in known], np.int64)
        if len(rows):
            change(index, [descriptors.images(rows)])
    return len(rows)


def remove_images(path: str | Path, ids: Sequence[str]) -> int:
    """Removes images by id; returns how many. Raises UserError, and removes none, where the index does not hold one of them."""
    with changing(path) as index:
        rows = index.rows(list(dict.fromkeys(ids)))
        if len(rows):
            change(index, removed=rows)
    return len(rows)


def compact(path: str | Path) -> tuple[int, int]:
    """Writes all images of an index as one part, without those that were removed; its bytes before and after.

    Where that is so, nothing is done, but for an index of an earlier version, which gets checksums.
    """
    before = _bytes(SearchIndex.open(path).facts)
    with changing(path) as index:
        if len(index.facts["parts"]) > 1 or index.facts["removed"] or index.facts["version"] == 1:
            _compact_from(index, 0)
    return before, _bytes(SearchIndex.open(path).facts)


def change(
    index: SearchIndex,
    added: Sequence[NewImages] = (),
    removed: np.ndarray | None = None,
    packer: Packer | None = None,
) -> None:
    """Adds images to an index and removes others in one step; `changing` gives the index.

    Args:
      added: images whose ids the index does not hold, or holds among `removed`.
      removed: int [n], rows of the index.
      packer: makes the bits, where one is at hand.

    Raises:
      UserError, OSError: nothing has changed.
    """
    gone = np.zeros(0, np.int64) if removed is None else index.stored(removed)
    facts, packer = _with_checksums(index), packer or BitPacker(index.model)
    for images in added:
        if len(images.ids):
            facts = write_images(index.path, facts, images, packer)
    facts = {**facts, "images": facts["images"] - len(gone)}
    if len(gone):
        facts = _with_removed(index.path, facts, np.union1d(_removed_rows(index), gone))
    publish(index.path, facts)
    remove_leftovers(index.path, facts)
    if _first_to_compact(facts) is not None:
        _compacted(SearchIndex.open(index.path))


def refuse_another_extraction(index: SearchIndex, descriptors: Descriptors) -> None:
    """Raises UserError for descriptors that were not extracted as those of the index were."""
    if descriptors.statistics != index.facts["statistics"]:
        raise UserError(
            f"{descriptors.root}: extracted with other SIFT statistics than the images of {index.path}; extract them "
            f"with --statistics={index.path / 'sift_statistics.npz'}"
        )
    was, now = map(_extraction, (read_about(index.path), descriptors.about))
    for key in sorted(was.keys() | now.keys(), key=lambda key: (not key.endswith("name"), key)):
        if was.get(key) != now.get(key):
            raise UserError(
                f"{descriptors.root}: extracted with {key} = {now.get(key)!r}, the images of {index.path} with "
                f"{was.get(key)!r}; extract them with the same settings"
            )


def _extraction(about: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an extraction that make its descriptors what they are; those of the global descriptor as global_KEY."""
    settings = dict(about.get("extraction") or {})
    beside = settings.pop("global_backbone", None) or {}
    settings |= {f"global_{key}": value for key, value in beside.items()}
    return {key: value for key, value in settings.items() if key.removeprefix("global_") not in FILES}


def _refuse_another_picture(index: SearchIndex, descriptors: Descriptors) -> None:
    row_of = {name: row for row, name in enumerate(index.ids)}
    for name in filter(row_of.__contains__, descriptors.ids):
        held, new = index.picture(row_of[name]), picture_of(name, descriptors.pictures)
        if held != new:
            raise UserError(
                f"{descriptors.root}: {name!r} is in the index already, as another picture ({held}, here {new}); "
                "extract from a folder that holds both, so that their ids differ"
            )


def _first_to_compact(facts: Mapping[str, Any]) -> int | None:
    """The part from which on all parts become one; None where all is well."""
    sizes = [part["images"] for part in facts["parts"]]
    if sum(sizes) - facts["images"] > MOST_REMOVED * sum(sizes):
        return 0
    if len(sizes) > MOST_PARTS:
        # One that is no larger than all behind it: so an image is copied a few times, however many are added one by one.
        return next((first for first in range(len(sizes)) if sizes[first] <= sum(sizes[first + 1 :])), None)
    return None


def _compacted(index: SearchIndex) -> SearchIndex:
    """The index after the compaction that is due."""
    first = _first_to_compact(index.facts)
    if first is None:
        return index
    _compact_from(index, first)
    return SearchIndex.open(index.path)


def _compact_from(index: SearchIndex, first: int) -> None:
    """Replaces the parts from the `first` on by one without removed images. One that holds no image at all stays."""
    parts = index.facts["parts"]
    start = sum(part["images"] for part in parts[:first])
    rows = np.arange(int(np.searchsorted(index.stored(np.arange(len(index))), start)), len(index))
    if not len(rows) and first == 0:
        return
    facts = {**_with_checksums(index), "parts": parts[:first], "images": len(index) - len(rows)}
    if len(rows):
        facts = write_images(index.path, facts, NewImages.of_index(index, rows), BitPacker(index.model))
    removed = _removed_rows(index)
    facts = _with_removed(index.path, facts, removed[removed < start])
    publish(index.path, facts)
    remove_leftovers(index.path, facts)


def _removed_rows(index: SearchIndex) -> np.ndarray:
    """int64, the stored images that were removed, ascending."""
    if index.kept is None:
        return np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(sum(map(len, index.stores))), index.kept, assume_unique=True)


def _with_removed(path: Path, facts: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """The facts with these stored images as the removed ones; writes their file."""
    if not len(rows):
        return {**facts, "removed": None}
    file = path / f"removed-{facts['changes']:05d}.npy"
    write_array(file, rows.astype(np.int64))
    known = {"file": file.name, "images": len(rows), **facts_of(file)}
    return {**facts, "changes": facts["changes"] + 1, "removed": known}


def _with_checksums(index: SearchIndex) -> dict[str, Any]:
    """The facts with checksums of all files: an index of an earlier version has none."""
    if index.facts["version"] > 1:
        return index.facts
    parts = []
    for part, store in zip(index.facts["parts"], index.stores):
        store.verify()
        parts.append({**part, "files": {**store.header["files"], **recorded(store.path, ["header.json", GLOBAL])}})
    return {**index.facts, "files": recorded(index.path, files_of_index(index.path)), "parts": parts}


def _bytes(facts: Mapping[str, Any]) -> int:
    files = [facts["files"], *(part.get("files", {}) for part in facts["parts"])]
    return sum(known["bytes"] for group in files for known in group.values())
