"""Records of a vector database, and the one small interface of all of them: a record holds the bits of an image, beside its
global vector."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from ames_jax.runtime.errors import UserError


class Unavailable(UserError):
    """A database gives no answer; asking again later may help."""


@dataclasses.dataclass(frozen=True)
class Record:
    """An image in a database.

    Attributes:
      key: its number, which follows from its id (`database_index.key_of`).
      image: its id.
      bits: count · bits / 8 bytes, the packed local descriptors, strongest first.
      place: folder and suffix of its picture (`SearchIndex.place_of_picture`) as JSON.
      version: of the model and the settings that made it.
      checksum: of all that is stored, by which changed images are found.
    """

    key: int
    image: str
    count: int
    bits: bytes
    place: str
    version: str
    checksum: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Record:
        """From the fields of a database whose bits are text."""
        return cls(**{**fields, "bits": base64.b64decode(fields["bits"])})

    def fields(self) -> dict[str, Any]:
        """All fields, bits as text."""
        return {**dataclasses.asdict(self), "bits": base64.b64encode(self.bits).decode()}


FIELDS = tuple(field.name for field in dataclasses.fields(Record))
Vectors = Sequence[Sequence[float]]


class Database(Protocol):
    """A collection of records; searches are by inner product. Whatever its library raises is left to `ask`."""

    def create(self, width: int) -> None:
        """Makes the collection, of vectors of `width` values, in place of one of this name."""

    def versions(self) -> set[str]:
        """The version of some record; nothing where there is no collection, or no record."""

    def checksums(self) -> dict[int, int]:
        """Checksums of all records by key."""

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        """Writes records, also in place of those of the same keys."""

    def delete(self, keys: Sequence[int]) -> None:
        """Removes records."""

    def nearest(self, vector: Sequence[float], k: int) -> list[tuple[float, Record]]:
        """The k records of the largest inner products, and these, falling."""

    def get(self, keys: Sequence[int]) -> list[Record]:
        """Records by key, in any order, without those that are not there."""

    def count(self, text: str = "") -> int:
        """Number of records whose id holds a text."""

    def names(self, text: str, start: int, count: int) -> list[str]:
        """A stretch of the ids that hold a text."""

    def close(self) -> None:
        """Ends the connection, and what runs in this process."""
