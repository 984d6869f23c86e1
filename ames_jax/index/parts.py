"""Images as a part of an index: what comes in, from a data set or from another index, and the folder that it becomes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.readers import DescriptorReader, PartReader
from ames_jax.data.store import Packer, build_store
from ames_jax.index.collection import SearchIndex
from ames_jax.index.first_stage import ChosenVectors, GlobalVectors, write_part
from ames_jax.index.index_json import EMPTY, GLOBAL, STAMPS, recorded, sync
from ames_jax.runtime.files import write_array

Place = Mapping[str, str] | None


@dataclasses.dataclass(frozen=True)
class NewImages:
    """Images on their way into an index.

    Attributes:
      ids: of the images, n of them.
      vectors: their global descriptors [n, G].
      reader: their local descriptors: floats, or bits of the index's model.
      source: where they come from, in words.
      pictures: runs of images whose pictures lie in one place: how many, and {"folder", "suffix"} (None: not known).
      stamps: uint64 [n, 4], size, time and hash of their pictures (`SearchIndex.stamps`); None where they are not known.
    """

    ids: Sequence[str]
    vectors: GlobalVectors
    reader: DescriptorReader
    source: str
    pictures: Sequence[tuple[int, Place]]
    stamps: np.ndarray | None = None

    @classmethod
    def of_index(cls, index: SearchIndex, rows: np.ndarray) -> NewImages:
        """Images `rows`, int [n], of an index as they are."""
        stamps = index.stamps(rows)
        return cls(
            ids=[index.ids[row] for row in rows],
            vectors=ChosenVectors(index.global_index, rows),
            reader=PartReader(index, rows),
            source=index.facts["parts"][-1]["source"],
            pictures=index.runs_of_pictures(rows),
            stamps=stamps if stamps.any() else None,
        )


def write_images(path: Path, facts: Mapping[str, Any], images: NewImages, packer: Packer) -> dict[str, Any]:
    """Writes images as a new part of an index, whose lock is held; returns the facts with the part.

    Until these are published nothing reads the part, and the next writer removes it. Raises UserError, OSError.
    """
    folder, count = path / f"part-{facts['changes']:05d}", len(images.ids)
    names = {"model": facts["model"], "source": images.source}
    store = build_store(folder, images.reader, images.ids, packer, facts["descriptors"], **names)
    write_part(path / EMPTY, images.vectors, folder / GLOBAL)
    more = ["header.json", GLOBAL]
    if images.stamps is not None:
        write_array(folder / STAMPS, images.stamps)
        more.append(STAMPS)
    sync(folder)
    part = {
        "folder": folder.name,
        "images": count,
        "source": images.source,
        "pictures": _plain(images.pictures),
        "global_bytes": (folder / GLOBAL).stat().st_size,
        "files": {**store.header["files"], **recorded(folder, more)},
    }
    first = {} if facts["parts"] else {"descriptors": store.header["descriptors"]}
    done = {"changes": facts["changes"] + 1, "images": facts["images"] + count, "parts": [*facts["parts"], part]}
    return {**facts, **first, **done}


def remove_leftovers(path: Path, facts: Mapping[str, Any]) -> None:
    """Removes what index.json does not name: what a killed change left, and what the last change replaced.

    Readers that have it open keep it, where the system lets them (Windows: it goes with a later change).
    """
    named = {part["folder"] for part in facts["parts"]} | {(facts["removed"] or {}).get("file")}
    for leftover in [*path.glob("part-*"), *path.glob(".part-*"), *path.glob("removed-*"), *path.glob(".*.partial")]:
        if leftover.name in named:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _plain(runs: Sequence[tuple[int, Place]]) -> Any:
    """As index.json keeps them: one place, as all versions read it, or a list of runs."""
    if len(runs) == 1:
        return runs[0][1]
    return [{"images": count, **(place or {"folder": None, "suffix": None})} for count, place in runs]
