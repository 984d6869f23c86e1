"""A data set of images on disk: TFDS metadata and ArrayRecord shards, one record per image, read without TensorFlow.

Written by `write_shards`, read by `open_split` or, by anyone, with
`tfds.builder_from_directory(root).as_data_source(split)`. Record i of a split is row i of its lists and neighbours.

    ROOT/dataset_info.json features.json NAME-SPLIT.array_record-00000-of-000NN
    ROOT/images/SPLIT.ids.txt SPLIT.labels.npy    the ids (one per line) and labels (int64) of the records
    ROOT/shards.json                              records, bytes and checksum of every shard
    ROOT/about.json                               free facts: name, backbone, width, …
    ROOT/SPLIT.source.json                        in place of shards: the release files that the split is read from
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from ames_jax.data.lists import read_ids
from ames_jax.data.records import LINK, ImageRecord, RecordFormat, check_split, read_finished, read_shard
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.shard_writing import write_shards
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.checksums import READ_ON_OPENING, check, note_unchecked, recorded
from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.files import read_array, read_json, write_json
from ames_jax.runtime.fingerprints import content_of, fingerprint_of

with epy.lazy_imports():  # neither exists for Windows, where all else works
    import tensorflow_datasets as tfds
    from array_record.python import array_record_data_source

__all__ = ["DescriptorSource", "ImageRecord", "link_split", "open_split", "read_about", "write_shards"]

SAMPLE = 8  # records that are compared with the lists of ids and labels
ARGUMENTS = {"features": str, "images": str | None, "descriptors": int | None}
SETTINGS = ("name", "block", "max_side")  # of a backbone; the rest that counts is in `input`
ABOUT = {"name?": str, "backbone?": str, "width?": int, "global?": str, "input?": dict}


class DescriptorSource:
    """The images of one split in shards; picklable, and safe to read from many threads.

    `len(source)` images; `source[i]` is an `ImageRecord` whose features are [K, D] (float16, float32 for int8 storage,
    uint8 for packed bits) with `valid` [K]; `read` makes it a `DescriptorReader`.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = Path(root).absolute(), split
        with _reading_metadata(self.root):
            info = _builder(self.root).info
            if split not in info.splits:
                raise UserError(f"{root}: no split {split!r}; it has: {', '.join(sorted(info.splits)) or 'none'}")
            self.format = RecordFormat.of_features(info.features)
            self._length = info.splits[split].num_examples
            self._files = info.splits[split].file_instructions
        note_unchecked(self.root / "dataset_info.json")
        self._open_lock = threading.Lock()
        self._records: Any = None

    @property
    def files(self) -> list[str]:
        """The shards."""
        return [shard.filename for shard in self._files]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> ImageRecord:
        row = int(row)
        if not 0 <= row < self._length:
            raise IndexError(f"{self.root} {self.split}: row {row} of {self._length}")
        try:
            return self.format.decode(self._open()[row])
        except UserError:
            raise
        except Exception as error:  # a damaged record fails in the reader's checksums, or in any part of its parsing
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.root} {self.split}: record {row} cannot be read ({reason}): copy its shard again; "
                "`python -m ames_jax.prepare validate` names it"
            ) from error

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """As `DescriptorReader`; rows in any order. Raises UserError for a shard that is gone."""
        images = [self[row].descriptors.truncate(count) for row in rows]
        xy = np.stack([i.xy for i in images]) if "xy" in self.format.geometry else None
        return DescriptorSet(np.stack([i.features for i in images]), np.stack([i.valid for i in images]), xy)

    def ids(self) -> list[str]:
        """The id of every record."""
        path = self.root / "images" / f"{self.split}.ids.txt"
        ids = read_ids(path, self._length)
        self._compare("id", ids, path)
        return ids

    def labels(self) -> np.ndarray:
        """int64 [N], the label of every record."""
        path = self.root / "images" / f"{self.split}.labels.npy"
        labels = read_array(path)
        if labels.shape != (self._length,):
            raise UserError(f"{path}: labels of shape {labels.shape} for {self._length} records; write it again")
        self._compare("label", labels.tolist(), path)
        return labels

    def fingerprint(self) -> str:
        """A hash of where the shards lie, their sizes, when they were changed, and samples of them."""
        return fingerprint_of(self.files)

    def content(self) -> str:
        """A hash of the shards that is the same wherever they lie; see `files.content_of`."""
        return content_of(self.files)

    def _open(self) -> Any:
        if self._records is None:
            with self._open_lock:
                self._check_shards()
                self._records = self._records or array_record_data_source.ArrayRecordDataSource(self._files)
        return self._records

    def _check_shards(self) -> None:
        """Compares the shards' sizes with shards.json, and of a small split all records; raises UserError naming the shard."""
        for missing in (path for path in self.files if not Path(path).is_file()):
            raise UserError(f"{missing} is missing; write the data set again, or copy it in full")
        known = read_finished(self.root).get(self.split, {}).get("files", {})  # TFDS writes sets without
        pairs = [(path, known[path.name]) for path in map(Path, self.files) if path.name in known]
        for path, facts in pairs:
            if path.stat().st_size != facts["file_bytes"]:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes, expected {facts['file_bytes']}: copy it again, or write the "
                    "data set again"
                )
        if sum(facts["file_bytes"] for _, facts in pairs) <= READ_ON_OPENING:
            for path, facts in pairs:
                read_shard(path, facts["records"], facts["sha256"], self.format)

    def _compare(self, field: str, values: Sequence[Any], path: Path) -> None:
        """Raises UserError where a list is not that of the records, of which some are looked at."""
        for row in np.unique(np.linspace(0, len(values) - 1, min(SAMPLE, len(values))).astype(int)).tolist():
            found = getattr(self[row], field)
            if found != values[row]:
                raise UserError(
                    f"{path}: record {row} has the {field} {found!r}, the list {values[row]!r}: it is of another data set; "
                    "copy it again, or write the split again"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __repr__(self) -> str:
        return f"DescriptorSource({str(self.root)!r}, {self.split!r})"


def open_split(root: str | Path, split: str) -> DescriptorSource | ReleaseSource:
    """Opens one split of a data set: its shards, or the release's HDF5 file that `link_split` put in their place.

    Raises UserError: when `root` holds no data set, or a data set without this split.
    """
    link = _link(Path(root), split)
    if not link.exists():
        return DescriptorSource(Path(root), split)
    arguments = read_json(link, keys=ARGUMENTS)
    if arguments.keys() - {name.removesuffix("?") for name in ARGUMENTS}:
        raise UserError(f"{link}: unknown keys {', '.join(arguments)}; write the split again")
    return ReleaseSource(**arguments)


def link_split(root: str | Path, split: str, source: ReleaseSource) -> None:
    """Makes a release's HDF5 file a split of the data set as it is: no copy, and as fast as the file can be read."""
    check_split(split)
    if (Path(root) / "images" / f"{split}.ids.txt").exists():
        raise UserError(f"{root}: split {split!r} has shards already; take another name, or delete them")
    link = _link(Path(root), split)
    with recorded(link.parent, link.name):
        write_json(link, source.arguments)


def _link(root: Path, split: str) -> Path:
    return root / f"{split}{LINK}"


def read_about(root: str | Path) -> dict[str, Any]:
    """The free facts about a data set (about.json); empty when there are none."""
    return read_json(Path(root) / "about.json", keys=ABOUT, missing={})


def write_about(root: str | Path, facts: Mapping[str, Any]) -> None:
    """Writes about.json with its checksum."""
    with recorded(Path(root), "about.json"):
        write_json(Path(root) / "about.json", facts)


def origin_of(reader: Any) -> dict[str, Any]:
    """The extraction of a reader's descriptors, as their data set's about.json says; {} where that was not done here.

    Keys: name of the backbone, max_side, resized, channels, sha256 (of weights), boxes (images of which a part was extracted).
    """
    if isinstance(reader, DescriptorSource):
        root, split = reader.root, reader.split
    elif isinstance(reader, ReleaseSource) and not reader.virtual:  # that extract wrote beside its shards
        root, split = reader.path.parent, reader.path.name.partition("_")[2].removesuffix("_local.hdf5")
    else:
        return {}
    about = read_about(root)
    settings = about.get("extraction")
    if not isinstance(settings, dict):
        return {}
    facts = {key: settings[key] for key in SETTINGS if settings.get(key) is not None}
    extracted = read_json(root / "images" / f"{split}.extracted.json", keys={"boxes?": int}, missing={})
    return facts | about.get("input", {}) | {key: extracted[key] for key in ("boxes",) if key in extracted}


@functools.lru_cache(maxsize=16)
def _builder_at(root: Path, _stamp: int) -> tfds.core.DatasetBuilder:
    with requires("tensorflow-datasets array-record", "reading shards"):
        return tfds.builder_from_directory(root)


def _builder(root: Path) -> tfds.core.DatasetBuilder:
    info = root / "dataset_info.json"
    if not info.exists():
        raise UserError(
            f"{root} holds no data set: {info.name} is missing; make one with "
            "`python -m ames_jax.prepare shards`, or name the folder that holds it"
        )
    for name in ("dataset_info.json", "features.json"):
        check(root / name)
    return _builder_at(root.resolve(), info.stat().st_mtime_ns)


@contextlib.contextmanager
def _reading_metadata(root: Path) -> Iterator[None]:
    """In this block, what TFDS makes of damaged metadata is one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # it can fail in any part of TFDS
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{root}: dataset_info.json or features.json cannot be read ({reason}): copy the data set again"
        ) from error
