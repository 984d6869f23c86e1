"""A search index on disk: a model, what extraction of a query needs, and parts with global and local descriptors.

    INDEX/index.json          what the index holds, part by part, with size and checksum of every file; replaced in one step,
                              last in building and in every change
    INDEX/about.json          facts about the extraction (of the first descriptors), with sift_statistics.npz for SIFT
    INDEX/model/              the binary model that made the bits
    INDEX/empty.faiss         the trained FAISS index without vectors, from which every part starts
    INDEX/part-XXXXX/         a packed store of local bits (`data/store.py`) and global.faiss, of images added together; where
                              they are known, size, time and hash of each picture (pictures.npy)
    INDEX/removed-XXXXX.npy   the stored images that were removed

A part never changes once it is written, and a file that index.json does not name does not exist for readers: a killed
change leaves the index as it was, and whoever has opened the old one goes on with it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ames_jax.data.store import PackedStore, open_store, rows_of
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import Backbone
from ames_jax.extraction.backbones import reopen_backbone
from ames_jax.index.first_stage import GlobalIndex
from ames_jax.index.index_json import AGAIN, GLOBAL, MODEL, STAMPS, check_files, note_without_checksums, read_facts
from ames_jax.model.kinds import Model
from ames_jax.model.packing import binarizer_fingerprint
from ames_jax.model.weights import read_model
from ames_jax.retrieval.refinement import RefinedStage
from ames_jax.runtime.checksums import compare
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_array
from ames_jax.runtime.paths import absolute


@dataclasses.dataclass(frozen=True)
class SearchIndex:
    """An open index of N images; row i is the i-th image in the order of adding, those that were removed left out.

    Attributes:
      path: its folder, absolute.
      facts: the content of index.json: images, descriptors (T per image), model, lam, gamma, global_index, parts, …
      model: the binary model.
      global_index: the first stage.
      stores: the packed store of each part, which also hold what was removed.
      kept: int64 [N], the place in the parts of each image; None where nothing was removed and each has its row's.
      ids: the id of each image.
    """

    path: Path
    facts: dict[str, Any]
    model: Model
    global_index: GlobalIndex
    stores: tuple[PackedStore, ...]
    kept: np.ndarray | None
    ids: list[str]
    changeable = True  # images can be added to it and removed

    @classmethod
    def open(cls, path: str | Path, parameters: str | None = None) -> SearchIndex:
        """Opens an index; of large files nothing but their size is read. parameters: of FAISS's search, e.g. "nprobe=64".

        Raises UserError, naming the file: no index, another version, a file missing, truncated, damaged or of another model.
        """
        path = absolute(path)
        facts = read_facts(path)
        while True:
            try:
                index = cls._open(path, facts, parameters)
            except (UserError, OSError):
                before, facts = facts, read_facts(path)
                if facts == before:
                    raise
            else:  # not replaced by a writer meanwhile
                note_without_checksums(path, facts)
                return index

    @classmethod
    def _open(cls, path: Path, facts: dict[str, Any], parameters: str | None) -> SearchIndex:
        check_files(path, facts["files"])
        model = read_model(path / MODEL)
        folders = [path / part["folder"] for part in facts["parts"]]
        for folder, part in zip(folders, facts["parts"]):
            compare(folder / GLOBAL, {"bytes": part["global_bytes"]}, AGAIN, read=False)
            check_files(folder, part.get("files", {}))
        fingerprint = binarizer_fingerprint(model)
        stores = tuple(open_store(folder, fingerprint) for folder in folders)
        for store in stores if facts["version"] == 1 else ():
            check_files(store.path, store.header["files"])
        held, ids = sum(map(len, stores)), [name for store in stores for name in store.ids()]
        kept = _kept_rows(path, facts["removed"], held)
        if kept is not None:
            ids = [ids[row] for row in kept]
        global_index = GlobalIndex([folder / GLOBAL for folder in folders], parameters, kept)
        if not len(ids) == len(global_index) == facts["images"]:
            raise UserError(
                f"{path}: index.json says {facts['images']} images, the parts hold {len(ids)} sets of local and "
                f"{len(global_index)} global descriptors; build the index again"
            )
        if global_index.width != facts["global_width"]:
            raise UserError(
                f"{path}: index.json says {facts['global_width']} values of a global descriptor, {GLOBAL} has "
                f"{global_index.width}; build the index again"
            )
        return cls(path, facts, model, global_index, stores, kept, ids)

    def __len__(self) -> int:
        return self.facts["images"]

    @property
    def binarizer(self) -> str:
        """`packing.binarizer_fingerprint` of the model."""
        return self.stores[0].binarizer

    @property
    def setting(self) -> tuple[float, float]:
        """λ and γ of the ensemble."""
        return self.facts["lam"], self.facts["gamma"]

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """int64 [n], the rows of images by id; raises UserError naming the first that the index does not hold."""
        return rows_of(self._row_of, ids, self.path)

    def find(self, name: str) -> int | None:
        """The row of an image by id, None where there is none."""
        return self._row_of.get(name)

    def listing(self, text: str, start: int, count: int) -> tuple[int, list[str]]:
        """A stretch of the ids that hold a text, in upper or lower case, and how many there are."""
        found = [name for name in self.ids if text.lower() in name.lower()] if text else self.ids
        return len(found), found[start : start + count]

    def read(self, rows: np.ndarray, count: int | None = None) -> DescriptorSet:
        """The first `count` stored descriptors of images `rows` int [n], any order: bits uint8 [n, T, bits / 8], `valid`."""
        rows = np.asarray(rows)
        count = min(count or self.facts["descriptors"], self.facts["descriptors"])
        bits = np.zeros((len(rows), count, self.facts["bits"] // 8), np.uint8)
        valid = np.zeros((len(rows), count), bool)
        stored, part_of, starts = self._places(rows)
        for part in np.unique(part_of):
            here = np.flatnonzero(part_of == part)
            images = self.stores[part].read(stored[here] - starts[part], count)
            bits[here, : images.count], valid[here, : images.count] = images.features, images.valid
        return DescriptorSet(bits, valid)

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """uint64 [n, 4]: size, time of change (ns) and 128 bits of a hash of each picture; zeros where they are not known."""
        stored, part_of, starts = self._places(rows)
        stamps = np.zeros((len(stored), 4), np.uint64)
        for part in np.unique(part_of):
            file = self.path / self.facts["parts"][part]["folder"] / STAMPS
            if STAMPS in self.facts["parts"][part].get("files", {}):
                here = part_of == part
                stamps[here] = read_array(file, mapped=True)[stored[here] - starts[part]]
        return stamps

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n], the places in the parts of images `rows`."""
        return np.asarray(rows, np.int64) if self.kept is None else self.kept[rows]

    def picture(self, row: int, folder: Path | None = None) -> Path | None:
        """The picture file of an image: in the folder that its descriptors named, None where they named none, or in
        `folder`, where the pictures have moved."""
        return picture_of(self.ids[row], self.place_of_picture(row), folder)

    def place_of_picture(self, row: int) -> dict[str, str] | None:
        """{"folder", "suffix"} of an image's picture, None where its descriptors named none."""
        return self.runs_of_pictures(np.array([row]))[0][1]

    def runs_of_pictures(self, rows: np.ndarray) -> list[tuple[int, dict[str, str] | None]]:
        """Images `rows`, int [n], as runs whose pictures lie in one place: how many images, and `place_of_picture`."""
        ends, places = self._picture_runs
        run_of = np.searchsorted(ends, self.stored(rows), side="right")
        grouped = itertools.groupby(run_of.tolist(), key=lambda run: places[run])
        return [(len(list(group)), place) for place, group in grouped]

    def row_of_picture(self, picture: Path, folder: Path | None = None) -> int | None:
        """The row of the image whose picture this file is, None where it is of none; folder: as of `picture`."""
        wanted = os.path.abspath(picture)
        for place in {(place["folder"], place["suffix"]) for place in self._picture_runs[1] if place}:
            root = os.path.abspath(folder or place[0])
            name = os.path.relpath(wanted, root).replace(os.sep, "/").removesuffix(place[1])
            for row in map(self.find, (name, f"./{name}")):  # as lists may have it
                known = None if row is None else self.picture(row, folder)
                if known is not None and os.path.abspath(known) == wanted:
                    return row
        return None

    def picture_path(self, row: int, folder: Path | None = None) -> Path:
        """`picture` of an image; raises UserError, naming the file, where there is none."""
        path = self.picture(row, folder)
        if path is None:
            raise UserError(f"{self.path} does not know where its pictures are; give their folder with --pictures=DIR")
        if not path.is_file():
            raise UserError(f"{path}: the picture is no longer there; give the pictures' folder with --pictures=DIR")
        return path

    def refined_stage(self, kinds: str) -> RefinedStage:
        """The first stage, refined by its global descriptors alone; raises UserError for other kinds than there are."""
        return RefinedStage(self.global_index, kinds)

    def open_backbone(self) -> Backbone:
        """Extracts queries as the images of the index were extracted; raises UserError where that is not known."""
        return reopen_backbone(self.path)

    def verify(self) -> tuple[int, int]:
        """Reads every file and returns their number and bytes; raises UserError, naming the first one that is damaged.

        Of an index of an earlier version that is local descriptors alone: it has no other checksums.
        """
        groups = [(self.path, self.facts["files"])]
        if self.facts["removed"]:
            groups.append((self.path, {self.facts["removed"]["file"]: self.facts["removed"]}))
        for part, store in zip(self.facts["parts"], self.stores):
            groups.append((store.path, part.get("files") or store.header["files"]))
        for folder, files in groups:
            check_files(folder, files, whole=True)
        sizes = [known["bytes"] for _, files in groups for known in files.values()]
        return len(sizes), sum(sizes)

    @functools.cached_property
    def _picture_runs(self) -> tuple[np.ndarray, list[dict[str, str] | None]]:
        """Ends, int64, of the runs of stored images whose pictures lie in one folder, and each run's folder with its suffix."""
        counts, places = [], []
        for part in self.facts["parts"]:
            pictures = part["pictures"]
            for run in pictures if isinstance(pictures, list) else [{"images": part["images"], **(pictures or {})}]:
                counts.append(run["images"])
                places.append(
                    {"folder": run["folder"], "suffix": run.get("suffix") or ""} if run.get("folder") else None
                )
        return np.cumsum(counts), places

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The place of images `rows` among all stored ones and the part of each, int [n]; and the first place of each part."""
        stored, sizes = self.stored(rows), np.array([len(store) for store in self.stores])
        ends = np.cumsum(sizes)
        return stored, np.searchsorted(ends, stored, side="right"), ends - sizes


def picture_of(name: str, pictures: Mapping[str, str] | None, folder: Path | None = None) -> Path | None:
    """The picture file of the image `name`: FOLDER/ID + SUFFIX of `pictures`, or in another folder; none outside of it."""
    place = folder or (pictures and pictures["folder"])
    if ".." in PurePath(name).parts:
        return None
    return Path(place) / f"{name}{pictures['suffix'] if pictures else ''}" if place else None


def _kept_rows(path: Path, removed: Mapping[str, Any] | None, held: int) -> np.ndarray | None:
    """int64, the stored images that were not removed, of `held`; None for all."""
    if removed is None:
        return None
    check_files(path, {removed["file"]: removed}, whole=True)
    rows = read_array(path / removed["file"])
    if rows.dtype != np.int64 or rows.ndim != 1 or (rows.size and not 0 <= rows.min() <= rows.max() < held):
        raise UserError(f"{path / removed['file']}: expected rows of {held} images; build the index again")
    kept = np.ones(held, bool)
    kept[rows] = False
    return np.flatnonzero(kept)
