"""A search index whose images are in a vector database, so that any number of machines re-rank what it finds.

Of the index's folder a machine needs the model and the settings of the extraction alone: index.json, about.json, model/ and,
for SIFT, sift_statistics.npz. The row of an image is the key of its record, which follows from its id.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.index.collection import SearchIndex
from ames_jax.index.database_records import Record
from ames_jax.index.databases import ask
from ames_jax.index.index_json import EMPTY, MODEL, check_files, read_facts
from ames_jax.model.packing import binarizer_fingerprint
from ames_jax.model.weights import read_model
from ames_jax.retrieval.refinement import RefinedStage
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.paths import absolute
from ames_jax.runtime.progress import Progress

BLOCK = 256  # records of a request
KEPT = 16_384  # records in memory: those that were found lately


def key_of(name: str) -> int:
    """The key of an image: 63 bits of a hash of its id."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1


def write_index(index: SearchIndex, address: str) -> tuple[int, int]:
    """Makes the collection hold the images of an index and no others: numbers of records written and removed.

    Records that are there and the same are left alone, so a run that was killed goes on. A collection of another model or
    other settings is replaced.

    Raises:
      UserError: an address of no database, two ids with one key; `Unavailable` where it gives no answer.
    """
    version, keys = _version(index), [key_of(name) for name in index.ids]
    if len(set(keys)) < len(keys):
        [key, _] = collections.Counter(keys).most_common(1)[0]
        twins = [name for name, other in zip(index.ids, keys) if other == key]
        raise UserError(f"{index.path}: the ids {twins} have one key in a database; rename one of the pictures")
    held: dict[int, int] = {}
    if ask(address, "versions") == {version}:
        held = ask(address, "checksums")
    else:
        ask(address, "create", index.global_index.width)
    written = 0
    with Progress("writing to the database", len(index), "images") as progress:
        for start in range(0, len(index), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(index)))
            vectors = np.asarray(index.global_index[rows], np.float32)
            records = _records(index, rows, keys[start : start + BLOCK], vectors, version)
            new = [place for place, record in enumerate(records) if held.get(record.key) != record.checksum]
            if new:
                ask(address, "put", [records[place] for place in new], vectors[new].tolist())
            written += len(new)
            progress.update(len(rows))
    gone = sorted(held.keys() - set(keys))
    for start in range(0, len(gone), BLOCK):
        ask(address, "delete", gone[start : start + BLOCK])
    return written, len(gone)


def _records(
    index: SearchIndex, rows: np.ndarray, keys: Sequence[int], vectors: np.ndarray, version: str
) -> list[Record]:
    stored, records = index.read(rows), []
    for row, key, bits, valid, vector in zip(rows.tolist(), keys, stored.features, stored.valid, vectors):
        held, place = bits[valid].tobytes(), json.dumps(index.place_of_picture(row))
        checksum = zlib.crc32(place.encode(), zlib.crc32(held, zlib.crc32(vector.tobytes())))
        records.append(Record(key, index.ids[row], int(valid.sum()), held, place, version, checksum))
    return records


def _version(index: SearchIndex) -> str:
    """Of the model and the settings of the extraction, which no change of an index touches."""
    settled = [binarizer_fingerprint(index.model), index.facts["statistics"], index.facts["global_width"]]
    return hashlib.sha256(json.dumps([*settled, index.facts["files"].get("about.json")]).encode()).hexdigest()[:16]


class Records:
    """The records of a collection: the first stage of an index (`GlobalIndex`), and its images by key.

    `width`: of the vectors; `version`: that records must have.
    """

    def __init__(self, address: str, width: int, version: str) -> None:
        self.address, self.width, self.version = address, width, version
        self._kept: collections.OrderedDict[int, Record] = collections.OrderedDict()
        self._lock = threading.Lock()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `GlobalIndex.search`: exact or not as the database is set up. The records come with the answer."""
        lists = [ask(self.address, "nearest", query.tolist(), k) for query in np.asarray(queries, np.float32)]
        k = max(map(len, lists), default=0)
        similarities, rows = np.full((len(lists), k), -np.inf, np.float32), np.full((len(lists), k), -1, np.int64)
        for place, hits in enumerate(lists):
            similarities[place, : len(hits)] = [similarity for similarity, _ in hits]
            rows[place, : len(hits)] = [record.key for _, record in hits]
            self._keep([record for _, record in hits])
        return similarities, rows

    def get(self, keys: Sequence[int]) -> list[Record | None]:
        """Records by key, None where there is none: those that were found lately, others from the database."""
        keys = [int(key) for key in keys]
        with self._lock:
            known = {key: self._kept[key] for key in keys if key in self._kept}
        wanted = sorted({key for key in keys if key >= 0} - known.keys())
        for start in range(0, len(wanted), BLOCK):
            found = ask(self.address, "get", wanted[start : start + BLOCK])
            self._keep(found)
            known |= {record.key: record for record in found}
        return [known.get(key) for key in keys]

    def _keep(self, records: Sequence[Record]) -> None:
        if any(record.version != self.version for record in records):
            raise UserError(
                f"--database={self.address}: its records are of another model or other settings than the index; write "
                "them again with search index --add --database=…"
            )
        with self._lock:
            for record in records:
                self._kept[record.key] = record
                self._kept.move_to_end(record.key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)


class Names:
    """Ids by row."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __getitem__(self, row: int) -> str:
        [record] = self._records.get([row])
        return record.image


@dataclasses.dataclass(frozen=True)
class DatabaseIndex(SearchIndex):
    """A search index whose first stage, stored descriptors and ids are those of a database; it cannot be changed.

    Attributes:
      images: how many there were when it was opened.
    """

    images: int = 0
    changeable = False

    @classmethod
    def connect(cls, path: str | Path, address: str) -> DatabaseIndex:
        """The images of the database at `address` for the index at `path`, of which the model and the settings are read.

        Raises UserError: no index, no collection, or one of another model.
        """
        path = absolute(path)
        facts = read_facts(path)
        check_files(path, {name: known for name, known in facts["files"].items() if name != EMPTY})
        # The part that would say it is not needed, so the fields that hold what is on disk stay empty.
        opened = cls(path, facts, read_model(path / MODEL), None, (), None, [])
        records = Records(address, facts["global_width"], _version(opened))
        versions = ask(address, "versions")
        if versions and versions != {records.version}:
            raise UserError(
                f"--database={address}: its records are of another model or other settings than {path}; write them "
                "again with search index --add --database=…"
            )
        images = ask(address, "count") if versions else 0
        if not images:
            raise UserError(f"--database={address} holds no image; search index --database=… writes them")
        return dataclasses.replace(opened, global_index=records, ids=Names(records), images=images)

    def __len__(self) -> int:
        return self.images

    def refined_stage(self, kinds: str) -> RefinedStage:
        """See `SearchIndex.refined_stage`; raises UserError."""
        raise UserError(
            f"refine={kinds} reads the global descriptors of the index, and those of {self.path} are in a database: leave "
            "--refine or --database out"
        )

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """See `SearchIndex.rows`."""
        keys = [key_of(name) for name in ids]
        missing = [name for name, record in zip(ids, self.global_index.get(keys)) if record is None]
        if missing:
            raise UserError(f"{self.global_index.address} holds no image {missing[0]!r}")
        return np.array(keys, np.int64)

    def read(self, rows: np.ndarray, count: int | None = None) -> DescriptorSet:
        """See `SearchIndex.read`; nothing of an image that is gone."""
        count = min(count or self.facts["descriptors"], self.facts["descriptors"])
        width = self.facts["bits"] // 8
        bits, valid = np.zeros((len(rows), count, width), np.uint8), np.zeros((len(rows), count), bool)
        for place, record in enumerate(self.global_index.get(rows)):
            if record is not None:
                held = np.frombuffer(record.bits, np.uint8).reshape(-1, width)[:count]
                bits[place, : len(held)], valid[place, : len(held)] = held, True
        return DescriptorSet(bits, valid)

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """See `SearchIndex.stamps`; a database knows none."""
        return np.zeros((len(rows), 4), np.uint64)

    def listing(self, text: str, start: int, count: int) -> tuple[int, list[str]]:
        """See `SearchIndex.listing`; in the database's order, and upper and lower case differ."""
        address = self.global_index.address
        return ask(address, "count", text), ask(address, "names", text, start, count)

    def place_of_picture(self, row: int) -> dict[str, str] | None:
        """See `SearchIndex.place_of_picture`."""
        [record] = self.global_index.get([row])
        return record and json.loads(record.place)

    def find(self, name: str) -> int | None:
        """See `SearchIndex.find`."""
        [record] = self.global_index.get([key_of(name)])
        return record and record.key
