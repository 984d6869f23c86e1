"""Making a search index from extracted descriptors; a kill at any moment leaves it whole or away."""

from __future__ import annotations

import contextlib
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
from ames_jax.data.store import PackedStore, build_store
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.sift import statistics_of
from ames_jax.index.collection import SearchIndex
from ames_jax.index.first_stage import ChosenVectors, check_vectors, factory_string, make_empty, write_empty
from ames_jax.index.index_json import EMPTY, FACTS, FORMAT, LATER, MODEL, publish, recorded, sync
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.parts import NewImages, write_images
from ames_jax.model.packing import BitPacker
from ames_jax.model.weights import MODEL_FILE, save_model
from ames_jax.runtime.cache import home
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock, read_array, whole_folder, write_file

KILOBYTE = 1024


@dataclasses.dataclass(frozen=True)
class Descriptors:
    """One split of a data set on disk that is to be searched.

    Attributes:
      root: its folder; split: the name of the split; about: its about.json.
      ids: of the images; global_descriptors: of the images, [N, G], memory-mapped.
      pictures: {"folder", "suffix"}: an image's picture is FOLDER/ID + SUFFIX; None where that is not known.
      stamps: size, time and hash of each picture (`SearchIndex.stamps`), None where they are not known.
    """

    root: Path
    split: str
    about: Mapping[str, Any]
    ids: list[str]
    global_descriptors: np.ndarray
    pictures: dict[str, str] | None
    stamps: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

    @classmethod
    def open(cls, root: str | Path, split: str = "images") -> Descriptors:
        """Raises UserError, naming the file, for what is missing or does not belong together."""
        root = Path(root)
        source, about = open_split(root, split), read_about(root)
        images, backbone = about.get("images", {}), about.get("backbone", "")
        if not (isinstance(images, dict) and isinstance(images.get(split, ""), str) and isinstance(backbone, str)):
            raise UserError(f"{root / 'about.json'}: 'images' or 'backbone' is not as extract writes it; extract again")
        file = root / "global" / f"{split}.npy"
        if not file.is_file():
            raise UserError(f"{file} is missing: a search index needs a global descriptor of every image")
        values, ids = read_array(file, mapped=True), source.ids()
        if values.ndim != 2 or len(values) != len(ids):
            raise UserError(f"{file} has shape {values.shape} for {len(ids)} images of {root} {split}")
        check_vectors(values, ids.__getitem__, file)
        pictures = None
        if split in about.get("images", {}):
            pictures = {"folder": about["images"][split], "suffix": ""}
        elif (root / "images" / f"{ids[0]}.jpg").is_file():  # the embedded landmarks keep their own pictures
            pictures = {"folder": str((root / "images").resolve()), "suffix": ".jpg"}
        return cls(root, split, about, ids, values, pictures)

    @property
    def statistics(self) -> str | None:
        """Fingerprint of the SIFT statistics that they were made with; None for other backbones."""
        return statistics_of(self.root)

    def reader(self, rows: np.ndarray | None = None) -> DescriptorReader:
        """Local descriptors of the images `rows`, int [n] ascending (None: all)."""
        reader = open_split(self.root, self.split)
        return reader if rows is None else PartReader(reader, rows)

    def images(self, rows: np.ndarray | None = None) -> NewImages:
        """The images `rows`, int [n] ascending (None: all), as an index takes them."""
        chosen = np.arange(len(self.ids)) if rows is None else rows
        return NewImages(
            ids=[self.ids[row] for row in chosen],
            # A memory map is read in the blocks that FAISS is given; all rows is the common case and needs no copy.
            vectors=self.global_descriptors if rows is None else ChosenVectors(self.global_descriptors, rows),
            reader=self.reader(chosen),
            source=f"{self.root} {self.split}",
            pictures=[(len(chosen), self.pictures)],
            stamps=None if self.stamps is None else self.stamps[chosen],
        )


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
    refuse_taken(path)
    chosen.check(descriptors.about, descriptors.statistics)
    chosen = chosen.fitted(descriptors.reader(), descriptors.about)
    packer = BitPacker(chosen.model)
    size = check_budget(budget, packer.bits)
    with lock(path, home()), whole_folder(path) as folder:
        refuse_taken(path)  # by a process that held the lock before
        save_model(chosen.model, folder / MODEL, chosen.facts)
        write_file(folder / "about.json", json.dumps(dict(descriptors.about), indent=1))
        if descriptors.statistics:
            shutil.copyfile(descriptors.root / STATISTICS_FILE, folder / STATISTICS_FILE)
        write_empty(make_empty(global_index, descriptors.global_descriptors), folder / EMPTY)
        facts = {
            "format": FORMAT,
            "images": 0,
            "descriptors": budget // size,
            "bits": packer.bits,
            "budget": budget,
            "model": chosen.name,
            "lam": chosen.lam,
            "gamma": chosen.gamma,
            **{key: chosen.facts.get(key, value) for key, value in LATER.items()},
            "global_index": factory_string(global_index, len(descriptors.ids)),
            "global_width": descriptors.global_descriptors.shape[1],
            "statistics": descriptors.statistics,
            **_probability(chosen.facts, budget // size),
            "changes": 0,
            "removed": None,
            "files": recorded(folder, files_of_index(folder)),
            "parts": [],
        }
        publish(folder, write_images(folder, facts, descriptors.images(), packer))
        sync(folder)
    return SearchIndex.open(path)


def _probability(facts: Mapping[str, Any], descriptors: int) -> dict[str, Any]:
    """The curve of a calibrated model, as an index keeps it, where it was learned with so many stored descriptors."""
    known = dict(facts.get("probability") or {})
    return {"probability": known} if known.pop("descriptors", None) == descriptors else {}


def pack_descriptors(path: str | Path, descriptors: Descriptors, chosen: ChosenModel, count: int = 64) -> PackedStore:
    """Packs the `count` strongest descriptors of all images to a store beside a database of one's own, and opens it.

    The store keeps λ and γ of the model.
    Raises UserError: the path is taken, or model and descriptors do not belong together.
    """
    chosen.check(descriptors.about, descriptors.statistics)
    return build_store(
        path,
        descriptors.reader(),
        descriptors.ids,
        BitPacker(chosen.model),
        count,
        model=chosen.name,
        source=f"{descriptors.root} {descriptors.split}",
        setting=(chosen.lam, chosen.gamma),
    )


def check_budget(budget: int, bits: int) -> int:
    """Bytes of a descriptor; raises UserError where a budget holds none."""
    size = bits // 8
    if budget < size:
        raise UserError(f"--budget={budget} B: one descriptor alone takes {size} B")
    return size


def files_of_index(path: Path) -> list[str]:
    """The files of an index that no change ever touches."""
    return [
        name
        for name in (f"{MODEL}/{MODEL_FILE}", "about.json", STATISTICS_FILE, EMPTY)
        if name != STATISTICS_FILE or (path / name).exists()
    ]


def workspace(path: Path) -> Path:
    """The folder beside an index in which pictures are extracted for it."""
    path = Path(os.path.abspath(path))  # `.` has no name
    return path.with_name(f".{path.name}.extraction")


def refuse_taken(path: Path) -> None:
    """Raises UserError where there is something at the path of a new index.

    Is it what a run made that was killed before it had cleared its extraction, this is done now: all of an extraction that is
    finished is older than the index, of an unfinished `sync` it is not.
    """
    if not path.exists():
        return
    if (path / FACTS).is_file():
        left = [entry.stat().st_mtime_ns for entry in workspace(path).rglob("*") if entry.is_file()]
        if max(left, default=0) <= (path / FACTS).stat().st_mtime_ns:
            with contextlib.suppress(UserError), lock(workspace(path), home()):
                shutil.rmtree(workspace(path), ignore_errors=True)
    raise UserError(f"{path} exists already; add images to it with --add, or name another --out")
