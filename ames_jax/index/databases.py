"""A vector database as the place of an index's images: one record holds global vector, bits and count of an image.

The folder of the index stays, with the model, the settings of the extraction and the ids; the first stage and the stored
descriptors come from the database, which scales and replicates as it does.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.index.collection import SearchIndex
from ames_jax.index.index_json import FACTS
from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.progress import Progress

KIND, BLOCK = "qdrant:", 256
FORM = "qdrant:PATH_OR_URL#COLLECTION"


@dataclasses.dataclass(frozen=True)
class Qdrant:
    """A collection of Qdrant, in this process (a folder) or behind an address.

    Attributes:
      version: of the index that the records must be of.
    """

    client: Any
    collection: str
    width: int
    images: int
    version: str

    @classmethod
    def open(cls, address: str, index: SearchIndex) -> Qdrant:
        """Opens qdrant:PATH_OR_URL#COLLECTION for the records of an index; raises UserError."""
        place, _, collection = address.removeprefix(KIND).partition("#")
        if not address.startswith(KIND) or not place or not collection:
            raise UserError(f"--database={address}: expected {FORM}")
        with requires("qdrant-client", f"--database={address}"):
            from qdrant_client import QdrantClient
        try:
            client = QdrantClient(url=place) if "://" in place else QdrantClient(path=place)
        except Exception as error:  # of its HTTP library, or that another process has the folder open
            raise UserError(f"--database={address}: cannot be opened: {error}") from error
        version = hashlib.sha256((index.path / FACTS).read_bytes()).hexdigest()[:16]
        return cls(client, collection, index.global_index.width, len(index), version)

    def __len__(self) -> int:
        return self.images

    def write(self, index: SearchIndex) -> None:
        """Puts every image into the collection, in place of what it held."""
        from qdrant_client import models

        shape = models.VectorParams(size=self.width, distance=models.Distance.DOT)
        if self._ask("collection_exists"):
            self._ask("delete_collection")
        self._ask("create_collection", vectors_config=shape)
        with Progress(f"writing to {self.collection}", self.images, "images") as progress:
            for start in range(0, self.images, BLOCK):
                rows = np.arange(start, min(start + BLOCK, self.images))
                vectors = np.asarray(index.global_index[rows], np.float32)
                records = list(self._payloads(index, rows))
                self._ask("upsert", points=models.Batch(ids=rows.tolist(), vectors=vectors.tolist(), payloads=records))
                progress.update(len(rows))

    def _payloads(self, index: SearchIndex, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        stored = index.read(rows)
        for row, bits, valid in zip(rows, stored.features, stored.valid):
            text = base64.b64encode(bits[valid].tobytes()).decode()
            yield {"image": index.ids[row], "count": int(valid.sum()), "bits": text, "version": self.version}

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `GlobalIndex.search`: exact in this process, as the server is set up elsewhere."""
        k = min(k, self.images)
        similarities, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for place, query in enumerate(np.asarray(queries, np.float32)):
            points = self._ask("query_points", query=query.tolist(), limit=k, with_payload=False).points
            similarities[place, : len(points)] = [point.score for point in points]
            rows[place, : len(points)] = [point.id for point in points]
        return similarities, rows

    def payloads(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The records of images `rows`; raises UserError where they are of another version of the index."""
        found = {
            point.id: point.payload
            for point in self._ask("retrieve", ids=[int(row) for row in rows], with_payload=True)
        }
        if any(found.get(int(row), {}).get("version") != self.version for row in rows):
            raise UserError(
                f"{self.collection}: its records are not of this version of the index; write them again with search index "
                "--add --database=…"
            )
        return [found[int(row)] for row in rows]

    def _ask(self, method: str, **arguments: Any) -> Any:
        try:
            return getattr(self.client, method)(self.collection, **arguments)
        except Exception as error:  # of its HTTP library, or a collection that is not there
            raise UserError(f"the collection {self.collection!r} gives no answer: {error}") from error


def write_index(index: SearchIndex, address: str) -> None:
    """Puts all images of an index into the database at `address`, in place of what it held; raises UserError."""
    database = Qdrant.open(address, index)
    with contextlib.closing(database.client):
        database.write(index)


@dataclasses.dataclass(frozen=True)
class DatabaseIndex(SearchIndex):
    """A search index whose first stage and stored descriptors are those of a database."""

    @classmethod
    def of(cls, index: SearchIndex, address: str) -> DatabaseIndex:
        """The same images, read from the database at `address`; raises UserError."""
        fields = {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}
        return cls(**{**fields, "global_index": Qdrant.open(address, index)})

    def read(self, rows: np.ndarray, count: int | None = None) -> DescriptorSet:
        """See `SearchIndex.read`."""
        count = min(count or self.facts["descriptors"], self.facts["descriptors"])
        width = self.facts["bits"] // 8
        bits, valid = np.zeros((len(rows), count, width), np.uint8), np.zeros((len(rows), count), bool)
        for place, record in enumerate(self.global_index.payloads(np.asarray(rows))):
            held = np.frombuffer(base64.b64decode(record["bits"]), np.uint8).reshape(-1, width)[:count]
            bits[place, : len(held)], valid[place, : len(held)] = held, True
        return DescriptorSet(bits, valid)
