"""A search index on disk: a model, what extraction of a query needs, and parts with global and local descriptors.

    INDEX/index.json        what the index holds, part by part; replaced in one step, last in building and in every change
    INDEX/about.json        facts about the extraction (of the first descriptors), with sift_statistics.npz for SIFT
    INDEX/model/            the binary model that made the bits
    INDEX/empty.faiss       the trained FAISS index without vectors, from which every part starts
    INDEX/part-XXXXX/       a packed store of local bits (`data/store.py`) and global.faiss, of images added together

A part never changes once it is written, and a part that index.json does not name does not exist for readers: a killed
change leaves the index as it was, and whoever has opened the old one goes on with it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.store import PackedStore, open_store, rows_of
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import Backbone
from ames_jax.extraction.backbones import reopen_backbone
from ames_jax.index.first_stage import GlobalIndex
from ames_jax.model.ames import AMES
from ames_jax.model.packing import binarizer_fingerprint
from ames_jax.model.weights import read_model
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json

FORMAT, VERSION = "ames_jax search index", 1
FACTS, MODEL, EMPTY, GLOBAL = "index.json", "model", "empty.faiss", "global.faiss"


@dataclasses.dataclass(frozen=True)
class SearchIndex:
    """An open index of N images; row i is the i-th image in the order of adding.

    Attributes:
      path: its folder.
      facts: the content of index.json: images, descriptors (T per image), model, lam, gamma, global_index, parts, …
      model: the binary model.
      global_index: the first stage.
      stores: the packed store of each part.
    """

    path: Path
    facts: dict[str, Any]
    model: AMES
    global_index: GlobalIndex
    stores: tuple[PackedStore, ...]

    @classmethod
    def open(cls, path: str | Path, parameters: str | None = None) -> SearchIndex:
        """Opens an index; of descriptors nothing is read yet. parameters: of FAISS's search, e.g. "nprobe=64".

        Raises UserError, naming the file: no index, another version, a file missing, truncated or of another model.
        """
        path = Path(path)
        facts = read_facts(path)
        model = read_model(path / MODEL)
        folders = [path / part["folder"] for part in facts["parts"]]
        for folder, part in zip(folders, facts["parts"]):
            _check_size(folder / GLOBAL, part["global_bytes"])
        fingerprint = binarizer_fingerprint(model)
        stores = tuple(open_store(folder, fingerprint) for folder in folders)
        global_index = GlobalIndex([folder / GLOBAL for folder in folders], parameters)
        held = sum(map(len, stores))
        if not held == len(global_index) == facts["images"]:
            raise UserError(
                f"{path}: index.json says {facts['images']} images, the parts hold {held} sets of local and "
                f"{len(global_index)} global descriptors; build the index again"
            )
        return cls(path, facts, model, global_index, stores)

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
    def ids(self) -> list[str]:
        """The id of every image."""
        return [name for store in self.stores for name in store.ids()]

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """int64 [n], the rows of images by id; raises UserError naming the first that the index does not hold."""
        return rows_of(self._row_of, ids, self.path)

    def read(self, rows: np.ndarray, count: int | None = None) -> DescriptorSet:
        """The first `count` stored descriptors of images `rows` int [n], any order: bits uint8 [n, T, bits / 8], `valid`."""
        rows = np.asarray(rows)
        count = min(count or self.facts["descriptors"], self.facts["descriptors"])
        bits = np.zeros((len(rows), count, self.facts["bits"] // 8), np.uint8)
        valid = np.zeros((len(rows), count), bool)
        part_of, starts = self._parts_of(rows)
        for part in np.unique(part_of):
            here = np.flatnonzero(part_of == part)
            images = self.stores[part].read(rows[here] - starts[part], count)
            bits[here, : images.count], valid[here, : images.count] = images.features, images.valid
        return DescriptorSet(bits, valid)

    def picture(self, row: int, folder: Path | None = None) -> Path | None:
        """The picture file of an image: in the folder that its descriptors named, None where they named none, or in
        `folder`, where the pictures have moved."""
        [part], _ = self._parts_of(np.array([row]))
        return picture_of(self.ids[row], self.facts["parts"][part]["pictures"], folder)

    def picture_path(self, row: int, folder: Path | None = None) -> Path:
        """`picture` of an image; raises UserError, naming the file, where there is none."""
        path = self.picture(row, folder)
        if path is None:
            raise UserError(f"{self.path} does not know where its pictures are; give their folder with --pictures=DIR")
        if not path.is_file():
            raise UserError(f"{path}: the picture is no longer there; give the pictures' folder with --pictures=DIR")
        return path

    def open_backbone(self) -> Backbone:
        """Extracts queries as the images of the index were extracted; raises UserError where that is not known."""
        return reopen_backbone(self.path)

    def verify(self) -> None:
        """Reads all local descriptors and raises UserError, naming the file, where one is damaged."""
        for store in self.stores:
            store.verify()

    def _parts_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each row, int [n], and the first row of each part."""
        ends = np.cumsum([len(store) for store in self.stores])
        return np.searchsorted(ends, rows, side="right"), ends - [len(store) for store in self.stores]


def picture_of(name: str, pictures: Mapping[str, str] | None, folder: Path | None = None) -> Path | None:
    """The picture file of the image `name`: FOLDER/ID + SUFFIX of `pictures`, or in another folder."""
    place = folder or (pictures and pictures["folder"])
    return Path(place) / f"{name}{pictures['suffix'] if pictures else ''}" if place else None


def read_facts(path: Path) -> dict[str, Any]:
    """The content of index.json; raises UserError where it is missing, damaged or of another version."""
    file = path / FACTS
    if not file.is_file():
        raise UserError(
            f"{path} is not a search index: it has no {FACTS}; make one with python -m ames_jax.search index"
        )
    facts = read_json(file)
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise UserError(
            f"{file}: {facts.get('format')!r} version {facts.get('version')}, this program reads {FORMAT!r} version "
            f"{VERSION}; build the index again"
        )
    return facts


def _check_size(file: Path, expected: int) -> None:
    size = file.stat().st_size if file.exists() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size} bytes, expected {expected}: it is truncated"
        raise UserError(f"{file} {found}; build or copy the index again")
