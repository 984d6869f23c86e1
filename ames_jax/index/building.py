"""Making a search index from extracted descriptors, and adding images to one; a kill at any moment leaves it whole or away."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.readers import ShardReader
from ames_jax.data.shards import open_split, read_about
from ames_jax.data.store import build_store
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.index.collection import EMPTY, FACTS, FORMAT, GLOBAL, MODEL, VERSION, SearchIndex, read_facts
from ames_jax.index.first_stage import factory_string, make_empty, write_empty, write_part
from ames_jax.index.model_choice import ChosenModel
from ames_jax.model.packing import BitPacker
from ames_jax.model.weights import save_model
from ames_jax.runtime.errors import UserError

KILOBYTE = 1024
LOCK = "lock"


@dataclasses.dataclass(frozen=True)
class Descriptors:
    """One split of a data set on disk that is to be searched.

    Attributes:
      root: its folder; split: which of its splits; about: its about.json.
      ids: of the images; globals: their global descriptors [N, G], memory-mapped.
      pictures: {"folder", "suffix"}: an image's picture is FOLDER/ID + SUFFIX; None where that is not known.
    """

    root: Path
    split: str
    about: Mapping[str, Any]
    ids: list[str]
    globals: np.ndarray
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
        return cls(root, split, about, ids, values, _pictures(root, split, about, ids))

    @property
    def statistics(self) -> str | None:
        """Fingerprint of the SIFT statistics that they were made with; None for other backbones."""
        file = self.root / STATISTICS_FILE
        return SiftStatistics.load(file).fingerprint() if file.is_file() else None

    def reader(self, rows: np.ndarray | None = None) -> _Rows:
        """Local descriptors of the images `rows` (None: all), as `build_store` reads them."""
        return _Rows(ShardReader(self.root, self.split), np.arange(len(self.ids)) if rows is None else rows)


def _pictures(root: Path, split: str, about: Mapping[str, Any], ids: list[str]) -> dict[str, str] | None:
    if split in about.get("images", {}):
        return {"folder": about["images"][split], "suffix": ""}
    if (root / "images" / f"{ids[0]}.jpg").is_file():  # the embedded landmarks keep their own pictures
        return {"folder": str((root / "images").resolve()), "suffix": ".jpg"}
    return None


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of a reader, as a reader."""

    reader: ShardReader
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        return self.reader.read(self.chosen[rows], count)


def build_index(
    path: str | Path, descriptors: Descriptors, chosen: ChosenModel, *, budget: int = KILOBYTE,
    global_index: str = "flat", show_progress: bool = False,
) -> SearchIndex:  # fmt: skip
    """Builds the index of all images of `descriptors` and opens it.

    Args:
      budget: bytes of local bits an image; the global descriptor comes on top.
      global_index: "flat", "ivf", "hnsw" or a factory string of FAISS (`global_index.factory_string`).

    Raises UserError: the path is taken, the budget holds no descriptor, model and descriptors do not belong together.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; add images to it with --add, or name another --out")
    chosen.check(descriptors.about, descriptors.statistics)
    packer = BitPacker(chosen.model)
    size = packer.config.bits // 8
    if budget < size:
        raise UserError(f"--budget={budget} B: one descriptor alone takes {size} B")
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(chosen.model, partial / MODEL, chosen.facts)
    (partial / "about.json").write_text(json.dumps(dict(descriptors.about), indent=1), encoding="utf-8")
    if descriptors.statistics:
        shutil.copyfile(descriptors.root / STATISTICS_FILE, partial / STATISTICS_FILE)
    write_empty(make_empty(global_index, descriptors.globals), partial / EMPTY)
    facts = {
        "format": FORMAT, "version": VERSION, "images": 0, "descriptors": budget // size, "bits": packer.config.bits,
        "budget": budget, "model": chosen.name, "lam": chosen.lam, "gamma": chosen.gamma,
        "global_index": factory_string(global_index, len(descriptors.ids)), "global_width": descriptors.globals.shape[1],
        "statistics": descriptors.statistics, "parts": [],
    }  # fmt: skip
    facts = _write_part(partial, facts, descriptors, np.arange(len(descriptors.ids)), packer, show_progress)
    _publish(partial, facts)
    _sync(partial)
    os.replace(partial, path)
    return SearchIndex.open(path)


def add_images(path: str | Path, descriptors: Descriptors, show_progress: bool = False) -> int:
    """Adds the images that the index does not hold yet, by id; returns how many that were.

    The index of before is searched until the last step, which replaces one file. Two at a time are refused.
    Raises UserError: no index, descriptors of another extraction, an id that stands for another picture in the index.
    """
    path = Path(path)
    with _locked(path):
        index = SearchIndex.open(path)
        _refuse_another_extraction(index, descriptors)
        known = set(index.ids)
        rows = np.array([row for row, name in enumerate(descriptors.ids) if name not in known], np.int64)
        _refuse_another_picture(index, descriptors, known)
        if len(rows):
            _remove_leftovers(path, index.facts)
            packer = BitPacker(index.model)
            _publish(path, _write_part(path, index.facts, descriptors, rows, packer, show_progress))
    return len(rows)


def _write_part(
    path: Path, facts: dict[str, Any], descriptors: Descriptors, rows: np.ndarray, packer: BitPacker, progress: bool
) -> dict[str, Any]:
    """Writes one part and returns the facts with it; nothing reads the part before they are published."""
    folder = path / f"part-{len(facts['parts']):05d}"
    ids = [descriptors.ids[row] for row in rows]
    source = f"{descriptors.root} {descriptors.split}"
    store = build_store(
        folder, descriptors.reader(rows), ids, packer, facts["descriptors"],
        model=facts["model"], source=source, show_progress=progress,
    )  # fmt: skip
    # A memory map is read in the blocks that FAISS is given; all rows is the common case and needs no copy.
    values = descriptors.globals if len(rows) == len(descriptors.ids) else descriptors.globals[rows]
    write_part(path / EMPTY, values, folder / GLOBAL)
    _sync(folder)
    part = {
        "folder": folder.name, "images": len(rows), "source": source, "pictures": descriptors.pictures,
        "global_bytes": (folder / GLOBAL).stat().st_size,
    }  # fmt: skip
    first = {} if facts["parts"] else {"descriptors": store.header["descriptors"]}
    return {**facts, **first, "images": facts["images"] + len(rows), "parts": [*facts["parts"], part]}


def _publish(path: Path, facts: dict[str, Any]) -> None:
    """Replaces index.json in one step."""
    partial = path / f"{FACTS}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path / FACTS)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time adds; the lock goes with the process, however it ends."""
    read_facts(path)
    with (path / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another process is adding images; try again when it is done") from error
        yield


def _remove_leftovers(path: Path, facts: Mapping[str, Any]) -> None:
    """Parts of additions that were killed."""
    named = {part["folder"] for part in facts["parts"]}
    for folder in path.glob("part-*"):
        if folder.name not in named:
            shutil.rmtree(folder)


def _sync(folder: Path) -> None:
    """Waits until everything in a folder is on the disk, so that a power failure cannot lose what is published after."""
    for entry in [*(file for file in folder.rglob("*") if file.is_file()), folder]:
        handle = os.open(entry, os.O_RDONLY)
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
    was, now = (about.get("extraction") or {} for about in (index.about, descriptors.about))
    for key in sorted((was.keys() | now.keys()) - {"weights", "detector"}):  # files may move
        if was.get(key) != now.get(key):
            raise UserError(
                f"{descriptors.root}: extracted with {key} = {now.get(key)!r}, the images of {index.path} with "
                f"{was.get(key)!r}; extract them as those were"
            )


def _refuse_another_picture(index: SearchIndex, descriptors: Descriptors, known: set[str]) -> None:
    for name in (name for name in descriptors.ids if name in known):
        held = index.picture(int(index.rows([name])[0]))
        new = descriptors.pictures and Path(descriptors.pictures["folder"]) / f"{name}{descriptors.pictures['suffix']}"
        if held != new:
            raise UserError(
                f"{descriptors.root}: {name!r} is in the index already, as another picture ({held}, here {new}); "
                "extract from a folder that holds both, so that their ids differ"
            )
