"""A data set of images on disk: TFDS metadata and ArrayRecord shards, one record an image, read without TensorFlow.

Written by `write_shards`, read by `open_split` or, by anyone, with
`tfds.builder_from_directory(root).as_data_source(split)`. Record i of a split is row i of its lists and neighbours.

    ROOT/dataset_info.json features.json NAME-SPLIT.array_record-00000-of-000NN
    ROOT/images/SPLIT.ids.txt SPLIT.labels.npy    the ids (a line each) and labels (int64) of the records
    ROOT/shards.json                              records, bytes and checksum of every shard
    ROOT/about.json                               free facts: name, backbone, width, …
    ROOT/SPLIT.source.json                        in place of shards: the release files that the split is read from
"""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ames_jax.data.records import ImageRecord, RecordFormat
from ames_jax.data.release_files import ReleaseSource
from ames_jax.data.shard_writing import write_shards
from ames_jax.runtime.errors import UserError

__all__ = ["DescriptorSource", "ImageRecord", "link_split", "open_split", "read_about", "write_shards"]


class DescriptorSource:
    """Random access to the images of one split; picklable, and safe to read from many threads.

    `len(source)` images; `source[i]` is an `ImageRecord` whose features are [K, D] (float16, float32 for int8 storage,
    uint8 for packed bits) with `valid` [K].
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = Path(root), split
        builder = _builder(self.root)
        if split not in builder.info.splits:
            found = ", ".join(sorted(builder.info.splits)) or "none"
            raise UserError(f"{root}: no split {split!r}; it has: {found}")
        self.format = RecordFormat.of_features(builder.info.features)
        self._length = builder.info.splits[split].num_examples
        self._files = builder.info.splits[split].file_instructions
        self._open_lock = threading.Lock()
        self._records: Any = None

    @property
    def files(self) -> list[str]:
        """The shards."""
        return [shard.filename for shard in self._files]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> ImageRecord:
        return self.format.decode(self.read(row))

    def read(self, row: int) -> bytes:
        """The stored bytes of record `row`; raises IndexError past the end and UserError for a shard that is gone."""
        row = int(row)
        if not 0 <= row < self._length:
            raise IndexError(f"{self.root} {self.split}: row {row} of {self._length}")
        return self._open()[row]

    def ids(self) -> list[str]:
        """The id of every record."""
        text = self._list("ids.txt").read_text(encoding="utf-8")
        return self._checked(text.split("\n")[:-1], "ids.txt")

    def labels(self) -> np.ndarray:
        """int64 [N], the label of every record."""
        return self._checked(np.load(self._list("labels.npy")), "labels.npy")

    def _list(self, kind: str) -> Path:
        path = self.root / "images" / f"{self.split}.{kind}"
        if not path.exists():
            raise UserError(f"{path} is missing: the data set was not written to its end; write it again")
        return path

    def _checked(self, values: Any, kind: str) -> Any:
        if len(values) != self._length:
            raise UserError(f"{self._list(kind)}: {len(values)} entries for {self._length} records; write it again")
        return values

    def _open(self) -> Any:
        if self._records is None:
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            with self._open_lock:
                for missing in (f.filename for f in self._files if not Path(f.filename).exists()):
                    raise UserError(f"{missing} is missing; write the data set again, or copy it in full")
                self._records = self._records or ArrayRecordDataSource(self._files)
        return self._records

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __repr__(self) -> str:
        return f"DescriptorSource({str(self.root)!r}, {self.split!r})"


def open_split(root: str | Path, split: str) -> DescriptorSource | ReleaseSource:
    """Opens one split of a data set: its shards, or the release's HDF5 file that `link_split` put in their place.

    Raises:
      UserError: when `root` holds no data set, or a data set without this split.
    """
    link = _link(Path(root), split)
    if link.exists():
        return ReleaseSource(**json.loads(link.read_text(encoding="utf-8")))
    return DescriptorSource(Path(root), split)


def link_split(root: str | Path, split: str, source: ReleaseSource) -> None:
    """Makes a release's HDF5 file a split of the data set as it is: no copy, and as fast as the file can be read."""
    if (Path(root) / "images" / f"{split}.ids.txt").exists():
        raise UserError(f"{root}: split {split!r} has shards already; take another name, or delete them")
    Path(root).mkdir(parents=True, exist_ok=True)
    _link(Path(root), split).write_text(json.dumps(source.arguments, indent=1), encoding="utf-8")


def _link(root: Path, split: str) -> Path:
    return root / f"{split}.source.json"


def read_about(root: str | Path) -> dict[str, Any]:
    """The free facts about a data set (about.json); empty when there are none."""
    path = Path(root) / "about.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@functools.lru_cache(maxsize=16)
def _builder_at(root: Path, _stamp: int) -> tfds.core.DatasetBuilder:
    return tfds.builder_from_directory(root)


def _builder(root: Path) -> tfds.core.DatasetBuilder:
    info = root / "dataset_info.json"
    if not info.exists():
        raise UserError(
            f"{root} holds no data set: {info.name} is missing; make one with "
            "`python -m ames_jax.prepare shards`, or name the folder that holds it"
        )
    return _builder_at(root.resolve(), info.stat().st_mtime_ns)
