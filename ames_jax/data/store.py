"""The packed store: the binary descriptors of a gallery at bits/8 bytes each, memory-mapped.

    STORE/header.json   format, version, images, descriptors, bits, binarizer, source; size and checksum of every file
    STORE/bits.npy      uint8 [N, T, bits / 8], strongest first, zeros behind the last descriptor of an image
    STORE/counts.npy    uint16 [N], descriptors of each image
    STORE/ids.txt       a line an image

A store is written to STORE.partial and renamed when it is whole, so a killed build leaves nothing that looks like one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.errors import UserError

FORMAT, VERSION = "ames_jax packed store", 1
IMAGES_A_BLOCK = 256
CHECKSUM_BYTES = 1 << 24


class DescriptorReader(Protocol):
    """Anything that holds the descriptors of N images: HDF5 files of the release, shards, a packed store."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """The first `count` descriptors (fewer where fewer are stored) of images `rows`, int [n], ascending: [n, T, ·]."""
        ...

    def fingerprint(self) -> str:
        """What tells these descriptors from others: where it differs, scores are made anew."""
        ...


class Packer(Protocol):
    """What turns float descriptors to bits: `model.packing.BitPacker`."""

    bits: int
    fingerprint: str

    def pack(self, descriptors: DescriptorSet, name: str = "descriptors") -> DescriptorSet: ...


@dataclasses.dataclass(frozen=True)
class PackedStore:
    """An open store: N images, up to T descriptors each. Nothing but the header and the counts is read on opening."""

    path: Path
    header: dict
    bits: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def binarizer(self) -> str:
        """`packing.binarizer_fingerprint` of the model that made the bits."""
        return self.header["binarizer"]

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """The first `count` descriptors of images `rows` (int [n], any order): bits uint8 [n, min(count, T), bits / 8]."""
        rows = np.asarray(rows)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise UserError(f"{self.path}: asked for image {rows.max()}, but the store holds {len(self)} images")
        count = min(count, self.bits.shape[1])
        # One copy per image of contiguous bytes: what the gather costs is what the memory gives.
        features = self.bits[rows, :count]
        return DescriptorSet(features, np.arange(count) < self.counts[rows, None])

    def fingerprint(self) -> str:
        """The header: it holds the checksums of all files."""
        return hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()[:16]

    def ids(self) -> list[str]:
        """The id of every image."""
        return (self.path / "ids.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """int64 [n], the rows of images by id; raises UserError naming the first that the store does not hold."""
        return rows_of(self._row_of, ids, self.path)

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids())}

    def check_model(self, binarizer: str | None) -> None:
        """Raises UserError unless the bits are those of a model: its `packing.binarizer_fingerprint`, None for floats."""
        if binarizer is None:
            raise UserError(f"{self.path} holds bits, which a full-precision model cannot read: give a binary model")
        if binarizer != self.header["binarizer"]:
            raise UserError(
                f"{self.path}: its bits were made by another model ({self.header['model']}, binarizer "
                f"{self.header['binarizer'][:8]}) than the one given ({binarizer[:8]}); build the store with this model"
            )

    def verify(self) -> None:
        """Reads everything and raises UserError, naming the file, where its checksum is not that of the header."""
        for name, facts in self.header["files"].items():
            if _checksum(self.path / name) != facts["crc32"]:
                raise UserError(f"{self.path / name} is damaged: its checksum is wrong; build the store again")


def open_store(path: str | Path, binarizer: str | None = None) -> PackedStore:
    """Opens a store. binarizer: `packing.binarizer_fingerprint` of the model that will read it, to be sure of the match.

    Raises UserError, naming the file: not a store, another version, a file missing or truncated, another model's bits.
    """
    path = Path(path)
    header = _read_header(path)
    for name, facts in header["files"].items():
        size = (path / name).stat().st_size if (path / name).exists() else None
        if size != facts["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, expected {facts['bytes']}: it is truncated"
            raise UserError(f"{path / name} {found}; build or copy the store again")
    if _checksum(path / "counts.npy") != header["files"]["counts.npy"]["crc32"]:
        raise UserError(f"{path / 'counts.npy'} is damaged: its checksum is wrong; build the store again")
    bits, counts = np.load(path / "bits.npy", mmap_mode="r"), np.load(path / "counts.npy")
    expected = (header["images"], header["descriptors"], header["bits"] // 8)
    if bits.shape != expected or bits.dtype != np.uint8 or counts.shape != expected[:1]:
        raise UserError(f"{path / 'bits.npy'} holds {bits.dtype} {bits.shape}, the header says uint8 {expected}")
    store = PackedStore(path, header, bits, counts)
    if binarizer is not None:
        store.check_model(binarizer)
    return store


def build_store(
    path: str | Path,
    reader: DescriptorReader,
    ids: Sequence[str],
    packer: Packer,
    descriptors: int,
    *,
    model: str,
    source: str,
    show_progress: bool = False,
) -> PackedStore:
    """Packs the strongest `descriptors` of every image of `reader`, 256 images in memory at a time, and opens the store.

    ids: one a row of `reader`. model, source: names of the model and of the data, kept in the header.
    Raises UserError when the path is taken, ids and images differ in number, an id holds a line break, or descriptors
    do not fit the model.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; remove it or name another store")
    if len(ids) != len(reader):
        raise UserError(f"{len(ids)} ids for {len(reader)} images: they belong to different galleries")
    if any("\n" in name for name in ids):
        raise UserError("an image id holds a line break; ids are kept a line each")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    descriptors = min(descriptors, reader.read(np.arange(min(1, len(reader))), descriptors).count)
    _write_bits(partial, reader, packer, descriptors, show_progress)
    (partial / "ids.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    files = {
        name: {"bytes": (partial / name).stat().st_size, "crc32": _checksum(partial / name)}
        for name in ("bits.npy", "counts.npy", "ids.txt")
    }
    header = {
        "format": FORMAT, "version": VERSION, "images": len(reader), "descriptors": descriptors,
        "bits": packer.bits, "binarizer": packer.fingerprint, "model": model, "source": source, "files": files,
    }  # fmt: skip
    (partial / "header.json").write_text(json.dumps(header, indent=1), encoding="utf-8")
    os.replace(partial, path)
    return open_store(path, packer.fingerprint)


def rows_of(row_of: Mapping[str, int], ids: Sequence[str], where: Path) -> np.ndarray:
    """int64 [n], rows by id; raises UserError naming the first id that is unknown."""
    missing = [name for name in ids if name not in row_of]
    if missing:
        raise UserError(f"{where} holds no image {missing[0]!r} ({len(missing)} of {len(ids)} ids are unknown)")
    return np.array([row_of[name] for name in ids], np.int64)


def _write_bits(folder: Path, reader: DescriptorReader, packer: Packer, descriptors: int, show_progress: bool) -> None:
    images = len(reader)
    bits = np.lib.format.open_memmap(
        folder / "bits.npy", mode="w+", dtype=np.uint8, shape=(images, descriptors, packer.bits // 8)
    )
    counts = np.zeros(images, np.uint16)
    with tqdm(total=images, unit="image", desc="packing", disable=not show_progress) as progress:
        for start in range(0, images, IMAGES_A_BLOCK):
            rows = np.arange(start, min(start + IMAGES_A_BLOCK, images))
            packed = packer.pack(_compact(reader.read(rows, descriptors)), f"images {rows[0]}…{rows[-1]}")
            bits[rows, : packed.count] = packed.features
            counts[rows] = packed.count if packed.valid is None else packed.valid.sum(axis=1)
            progress.update(len(rows))
    bits.flush()
    np.save(folder / "counts.npy", counts)


def _compact(descriptors: DescriptorSet) -> DescriptorSet:
    """Real descriptors first, in their order, so that a count says which are real."""
    valid = descriptors.valid
    if valid is None or (valid[:, :-1] >= valid[:, 1:]).all():
        return descriptors
    order = np.argsort(~valid, axis=1, kind="stable")
    features = np.take_along_axis(descriptors.features, order[..., None], axis=1)
    return DescriptorSet(features, np.take_along_axis(valid, order, axis=1))


def _read_header(path: Path) -> dict:
    file = path / "header.json"
    if not file.is_file():
        raise UserError(f"{path} is not a packed store: it has no header.json")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not readable as JSON ({error}); build the store again") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{file} is not the header of a packed store of ames_jax")
    if header.get("version") != VERSION:
        raise UserError(
            f"{file}: version {header.get('version')}, this program reads version {VERSION}; build it again"
        )
    return header


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHECKSUM_BYTES):
            value = zlib.crc32(chunk, value)
    return value
