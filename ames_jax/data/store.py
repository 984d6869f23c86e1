"""The packed store: the binary descriptors of a gallery at bits/8 bytes each, memory-mapped.

    STORE/header.json   format, version, images, descriptors, bits, binarizer, model, source, and where they are known λ and γ
                        of the model ("setting"); size and checksum of every file, and of the header itself
    STORE/bits.npy      uint8 [N, T, bits / 8], strongest first, zeros behind the last descriptor of an image
    STORE/counts.npy    uint16 [N], descriptors of each image
    STORE/sums.npy      uint32 [N], CRC-32 of the bits of each image, compared whenever they are read
    STORE/ids.txt       one id per line

A store appears whole or not at all, so a killed build leaves nothing that looks like one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ames_jax.data.lists import read_ids, write_ids
from ames_jax.data.readers import DescriptorReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.checksums import compare, facts_of, json_checksum
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_array, read_json, whole_folder, write_array, write_blocks, write_json
from ames_jax.runtime.paths import absolute
from ames_jax.runtime.progress import Progress
from ames_jax.runtime.schema import Between, check_keys

FORMAT, VERSION = "ames_jax packed store", 1
IMAGES_PER_BLOCK = 256
MOST = np.iinfo(np.uint16).max
FILE = {"bytes": int, "crc32": int}
# What the header holds; see `check_keys`.
HEADER = {
    "format": str,
    "version": int,
    "images": int,
    "descriptors": int,
    "bits": range(8, 2**20, 8),
    "binarizer": str,
    "model": str,
    "source": str,
    "setting?": ({"lam": Between(0, 1), "gamma": Between(0, 1e9)}, None),
    "files": {"bits.npy": FILE, "counts.npy": FILE, "sums.npy?": FILE, "ids.txt": FILE},
    "crc32?": int | None,
}
AGAIN = "build the store again"


class Packer(Protocol):
    """Turns float descriptors to bits; see `model.packing.BitPacker`."""

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
    sums: np.ndarray | None  # of stores that earlier versions wrote, None

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def binarizer(self) -> str:
        """`packing.binarizer_fingerprint` of the model that made the bits."""
        return self.header["binarizer"]

    @property
    def setting(self) -> tuple[float, float] | None:
        """λ and γ with which scores of the model join the global ones, None where the store does not know them."""
        known = self.header.get("setting")
        return None if known is None else (known["lam"], known["gamma"])

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """The first `count` descriptors of images `rows` (int [n], any order): bits uint8 [n, min(count, T), bits / 8].

        Raises UserError for rows that the store does not hold and, naming the file, where bits are not those written.
        """
        rows = np.asarray(rows)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise UserError(f"{self.path}: asked for image {rows.max()}, but the store holds {len(self)} images")
        count = min(count, self.bits.shape[1])
        # One copy per image of contiguous bytes: what the gather costs is what the memory gives.
        images = self.bits[rows]
        if self.sums is not None:
            for row, image, known in zip(rows.tolist(), images, self.sums[rows].tolist()):
                if zlib.crc32(image) != known:
                    raise UserError(f"{self.path / 'bits.npy'} is damaged: image {row}; build or copy the store again")
        return DescriptorSet(images[:, :count], np.arange(count) < self.counts[rows, None])

    def fingerprint(self) -> str:
        """A hash of the header, which holds the checksums of all files."""
        return hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()[:16]

    def ids(self) -> list[str]:
        """The id of every image."""
        return read_ids(self.path / "ids.txt", len(self))

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
        if binarizer != self.binarizer:
            raise UserError(
                f"{self.path}: its bits were made by another model ({self.header['model']}, binarizer "
                f"{self.binarizer[:8]}) than the one given ({binarizer[:8]}); build the store with this model"
            )

    def verify(self) -> None:
        """Reads everything and raises UserError, naming the file, where its checksum is not that of the header."""
        for name, known in self.header["files"].items():
            compare(self.path / name, known, AGAIN, read=True)


def open_store(path: str | Path, binarizer: str | None = None) -> PackedStore:
    """Opens a store. binarizer: `packing.binarizer_fingerprint` of the model that will read it, to be sure of the match.

    Raises UserError, naming the file: not a store, another version, a file missing or truncated, another model's bits.
    """
    path = absolute(path)
    header = _read_header(path)
    for name, known in header["files"].items():
        # Bits that have sums are compared image by image as they are read.
        compare(path / name, known, AGAIN, read=False if name == "bits.npy" and "sums.npy" in header["files"] else None)
    bits, counts = read_array(path / "bits.npy", mapped=True), read_array(path / "counts.npy")
    expected = (header["images"], header["descriptors"], header["bits"] // 8)
    if bits.shape != expected or bits.dtype != np.uint8 or counts.shape != expected[:1]:
        raise UserError(f"{path / 'bits.npy'} holds {bits.dtype} {bits.shape}, the header says uint8 {expected}")
    sums = read_array(path / "sums.npy") if "sums.npy" in header["files"] else None
    if sums is not None and (sums.shape != counts.shape or sums.dtype != np.uint32):
        raise UserError(f"{path / 'sums.npy'} holds {sums.dtype} {sums.shape}, the header says uint32 {counts.shape}")
    store = PackedStore(path, header, bits, counts, sums)
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
    setting: tuple[float, float] | None = None,
) -> PackedStore:
    """Packs the strongest `descriptors` of every image of `reader`, 256 images in memory at a time, and opens the store.

    Args:
      ids: one for each row of `reader`.
      model, source: names of the model and of the data, kept in the header.
      setting: λ and γ of the model, where they are known.

    Raises:
      UserError: the path is taken, ids and images differ in number, an id holds a line break, or descriptors do not fit
        the model.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; remove it or name another store")
    if len(ids) != len(reader):
        raise UserError(f"{len(ids)} ids for {len(reader)} images: they belong to different galleries")
    descriptors = min(descriptors, MOST, reader.read(np.arange(min(1, len(reader))), descriptors).count)
    with whole_folder(path) as partial:
        write_ids(partial / "ids.txt", ids)
        counts, sums = np.zeros(len(reader), np.uint16), np.zeros(len(reader), np.uint32)
        blocks = _packed_blocks(reader, packer, descriptors, counts, sums)
        write_blocks(partial / "bits.npy", blocks, np.uint8, (len(reader), descriptors, packer.bits // 8))
        write_array(partial / "counts.npy", counts)
        write_array(partial / "sums.npy", sums)
        files = {name: facts_of(partial / name) for name in ("bits.npy", "counts.npy", "sums.npy", "ids.txt")}
        header = {
            "format": FORMAT,
            "version": VERSION,
            "images": len(reader),
            "descriptors": descriptors,
            "bits": packer.bits,
            "binarizer": packer.fingerprint,
            "model": model,
            "source": source,
            **({} if setting is None else {"setting": dict(zip(("lam", "gamma"), setting))}),
            "files": files,
        }
        write_json(partial / "header.json", header | {"crc32": json_checksum(header)})
    return open_store(path, packer.fingerprint)


def rows_of(row_of: Mapping[str, int], ids: Sequence[str], where: Path) -> np.ndarray:
    """int64 [n], rows by id; raises UserError naming the first id that is unknown."""
    missing = [name for name in ids if name not in row_of]
    if missing:
        raise UserError(f"{where} holds no image {missing[0]!r} ({len(missing)} of {len(ids)} ids are unknown)")
    return np.array([row_of[name] for name in ids], np.int64)


def _packed_blocks(
    reader: DescriptorReader, packer: Packer, descriptors: int, counts: np.ndarray, sums: np.ndarray
) -> Iterator[np.ndarray]:
    """Bits uint8 [≤ 256, descriptors, bits / 8] of the images in their order; fills `counts` and `sums` on the way."""
    with Progress("packing", len(reader), "images") as progress:
        for start in range(0, len(reader), IMAGES_PER_BLOCK):
            rows = np.arange(start, min(start + IMAGES_PER_BLOCK, len(reader)))
            packed = packer.pack(_real_first(reader.read(rows, descriptors)), f"images {rows[0]}…{rows[-1]}")
            counts[rows] = packed.count if packed.valid is None else packed.valid.sum(axis=1)
            bits = np.ascontiguousarray(packed.pad(descriptors).features)
            sums[rows] = [zlib.crc32(image) for image in bits]
            yield bits
            progress.update(len(rows))


def _real_first(descriptors: DescriptorSet) -> DescriptorSet:
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
    header = read_json(file)
    if header.get("format") != FORMAT:
        raise UserError(f"{file} is not the header of a packed store of ames_jax")
    if header.get("version") != VERSION:
        raise UserError(
            f"{file}: version {header.get('version')}, this program reads version {VERSION}; build it again"
        )
    check_keys(header, HEADER, str(file), AGAIN, only=True)
    known = header.pop("crc32", None)  # earlier versions wrote none
    if known not in (None, json_checksum(header)):
        raise UserError(f"{file} is damaged: its checksum is wrong; build the store again")
    return header
