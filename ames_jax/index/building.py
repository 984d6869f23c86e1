"""Making a search index from extracted descriptors, and adding images to one; a kill at any moment leaves it whole or away."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.readers import DescriptorReader, PartReader
from ames_jax.data.shards import open_split, read_about
from ames_jax.data.store import build_store
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.index.collection import EMPTY, FACTS, FORMAT, GLOBAL, MODEL, VERSION, SearchIndex, picture_of
from ames_jax.index.first_stage import factory_string, make_empty, write_empty, write_part
from ames_jax.index.model_choice import ChosenModel
from ames_jax.model.packing import BitPacker
from ames_jax.model.weights import save_model
from ames_jax.runtime.cache import home
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock, whole_file, whole_folder, write_file

KILOBYTE = 1024
# Of the settings of an extraction, files, which may move.
FILES = {"weights", "detector"}


@dataclasses.dataclass(frozen=True)
class Descriptors:
    """One split of a data set on disk that is to be searched.

    Attributes:
      root: its folder; split: the name of the split; about: its about.json.
      ids: of the images; global_descriptors: of the images, [N, G], memory-mapped.
      pictures: {"folder", "suffix"}: an image's picture is FOLDER/ID + SUFFIX; None where that is not known.
    """

    root: Path
    split: str
    about: Mapping[str, Any]
    ids: list[str]
    global_descriptors: np.ndarray
    pictures: dict[str, str] | None

    @classmethod
    def open(cls, root: str | Path, split: str = "images") -> Descriptors:
        """Raises UserError, naming the file, for what is missing or does not belong together."""
        root = Path(root)
        source, about = open_split(root, split), read_about(root)
        file = root / "global" / f"{split}.npy"
        if not file.is_file():
            raise UserError(f"{file} is missing: a search index needs a global descriptor of every image")
        values, ids = np.load(file, mmap_mode="r"), source.ids()
        if values.ndim != 2 or len(values) != len(ids):
            raise UserError(f"{file} has shape {values.shape} for {len(ids)} images of {root} {split}")
        pictures = None
        if split in about.get("images", {}):
            pictures = {"folder": about["images"][split], "suffix": ""}
        elif (root / "images" / f"{ids[0]}.jpg").is_file():  # the embedded landmarks keep their own pictures
            pictures = {"folder": str((root / "images").resolve()), "suffix": ".jpg"}
        return cls(root, split, about, ids, values, pictures)

    @property
    def statistics(self) -> str | None:
        """Fingerprint of the SIFT statistics that they were made with; None for other backbones."""
        file = self.root / STATISTICS_FILE
        return SiftStatistics.load(file).fingerprint() if file.is_file() else None

    def reader(self, rows: np.ndarray | None = None) -> DescriptorReader:
        """Local descriptors of the images `rows`, int [n] ascending (None: all)."""
        reader = open_split(self.root, self.split)
        return reader if rows is None else PartReader(reader, rows)


def build_index(
    path: str | Path, descriptors: Descriptors, chosen: ChosenModel, budget: int = KILOBYTE, global_index: str = "flat"
) -> SearchIndex:
    """Builds the index of all images of `descriptors` and opens it.

    Args:
      path: its folder, which appears whole or not at all.
      chosen: the model that makes the bits.
      budget: bytes of local bits per image; the global descriptor comes on top.
      global_index: "flat", "ivf", "hnsw" or a factory string of FAISS (`first_stage.factory_string`).

    Raises:
      UserError: the path is taken or being written, the budget holds no descriptor, or model and descriptors do not
        belong together.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; add images to it with --add, or name another --out")
    chosen.check(descriptors.about, descriptors.statistics)
    packer = BitPacker(chosen.model)
    size = packer.bits // 8
    if budget < size:
        raise UserError(f"--budget={budget} B: one descriptor alone takes {size} B")
    with lock(path, home()), whole_folder(path) as folder:
        save_model(chosen.model, folder / MODEL, chosen.facts)
        write_file(folder / "about.json", json.dumps(dict(descriptors.about), indent=1))
        if descriptors.statistics:
            shutil.copyfile(descriptors.root / STATISTICS_FILE, folder / STATISTICS_FILE)
        write_empty(make_empty(global_index, descriptors.global_descriptors), folder / EMPTY)
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "images": 0,
            "descriptors": budget // size,
            "bits": packer.bits,
            "budget": budget,
            "model": chosen.name,
            "lam": chosen.lam,
            "gamma": chosen.gamma,
            "global_index": factory_string(global_index, len(descriptors.ids)),
            "global_width": descriptors.global_descriptors.shape[1],
            "statistics": descriptors.statistics,
            "parts": [],
        }
        publish(folder, write_images(folder, facts, descriptors, np.arange(len(descriptors.ids)), packer))
        _sync(folder)
    return SearchIndex.open(path)


def add_images(path: str | Path, descriptors: Descriptors) -> int:
    """Adds the images that the index does not hold yet, by id; returns how many that were.

    The index of before is searched until the last step, which replaces one file. Two at a time are refused.
    Raises UserError: no index, descriptors of another extraction, an id that stands for another picture in the index.
    """
    path = Path(path)
    with lock(path, home()):
        index = SearchIndex.open(path)
        _refuse_another_extraction(index, descriptors)
        _refuse_another_picture(index, descriptors)
        known = set(index.ids)
        rows = np.array([row for row, name in enumerate(descriptors.ids) if name not in known], np.int64)
        if len(rows):
            publish(path, write_images(path, index.facts, descriptors, rows, BitPacker(index.model)))
    return len(rows)


def write_images(
    path: Path, facts: dict[str, Any], descriptors: Descriptors, rows: np.ndarray, packer: BitPacker
) -> dict[str, Any]:
    """Writes the images `rows` of a data set as a part of an index, whose lock is held.

    Returns the facts with the part; without `publish` nothing reads it, and the next writer removes it.
    """
    for leftover in path.glob("part-*"):  # of changes that were killed
        if leftover.name not in {part["folder"] for part in facts["parts"]}:
            shutil.rmtree(leftover)
    folder = path / f"part-{len(facts['parts']):05d}"
    ids, reader = [descriptors.ids[row] for row in rows], descriptors.reader(rows)
    names = {"model": facts["model"], "source": f"{descriptors.root} {descriptors.split}"}
    store = build_store(folder, reader, ids, packer, facts["descriptors"], **names, show_progress=True)
    # A memory map is read in the blocks that FAISS is given; all rows is the common case and needs no copy.
    values = descriptors.global_descriptors
    write_part(path / EMPTY, values if len(rows) == len(values) else values[rows], folder / GLOBAL)
    _sync(folder)
    part = {
        "folder": folder.name,
        "images": len(rows),
        "source": names["source"],
        "pictures": descriptors.pictures,
        "global_bytes": (folder / GLOBAL).stat().st_size,
    }
    first = {} if facts["parts"] else {"descriptors": store.header["descriptors"]}
    return {**facts, **first, "images": facts["images"] + len(rows), "parts": [*facts["parts"], part]}


def publish(path: Path, facts: dict[str, Any]) -> None:
    """Replaces index.json: from now on the index is what `facts` say."""
    with whole_file(path / FACTS) as partial:
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        _sync(partial)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder with all in it, is on the disk, so that a power failure cannot lose what is
    published after."""
    for entry in [*path.rglob("*"), path]:
        if entry.is_dir() and os.name == "nt":  # Windows has no handles of folders
            continue
        handle = os.open(entry, os.O_RDONLY if entry.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refuse_another_extraction(index: SearchIndex, descriptors: Descriptors) -> None:
    if descriptors.statistics != index.facts["statistics"]:
        raise UserError(
            f"{descriptors.root}: extracted with other SIFT statistics than the images of {index.path}; extract them "
            f"with --statistics={index.path / STATISTICS_FILE}"
        )
    was, now = (about.get("extraction") or {} for about in (read_about(index.path), descriptors.about))
    for key in sorted((was.keys() | now.keys()) - FILES):
        if was.get(key) != now.get(key):
            raise UserError(
                f"{descriptors.root}: extracted with {key} = {now.get(key)!r}, the images of {index.path} with "
                f"{was.get(key)!r}; extract them with the same settings"
            )


def _refuse_another_picture(index: SearchIndex, descriptors: Descriptors) -> None:
    row_of = {name: row for row, name in enumerate(index.ids)}
    for name in filter(row_of.__contains__, descriptors.ids):
        held, new = index.picture(row_of[name]), picture_of(name, descriptors.pictures)
        if held != new:
            raise UserError(
                f"{descriptors.root}: {name!r} is in the index already, as another picture ({held}, here {new}); "
                "extract from a folder that holds both, so that their ids differ"
            )
