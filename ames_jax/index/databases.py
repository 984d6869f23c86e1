"""Vector databases, each behind the interface of `database_records`.

    qdrant:PATH_OR_URL#COLLECTION       in this process (a folder) or a server
    milvus:FILE.db_OR_URL#COLLECTION    Milvus Lite in this process, or a server
    pgvector:postgresql://…#TABLE       PostgreSQL with the extension pgvector

A key of a hosted database is read from AMES_JAX_DATABASE_KEY (PostgreSQL: PGPASSWORD, or in its address).
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from ames_jax.index.database_records import FIELDS, Database, Record, Unavailable, Vectors
from ames_jax.runtime.errors import UserError, requires

FORM = "qdrant:PATH_OR_URL#COLLECTION, milvus:FILE.db_OR_URL#COLLECTION or pgvector:postgresql://…#TABLE"
KEY = "AMES_JAX_DATABASE_KEY"


class Qdrant:
    """A collection of Qdrant; a server searches as it is set up. Of a text in an id, whole words are found."""

    def __init__(self, place: str, collection: str) -> None:
        from qdrant_client import QdrantClient, models

        self.models, self.collection = models, collection
        of_server = {"url": place, "api_key": os.environ.get(KEY), "check_compatibility": False}
        self.client = QdrantClient(**(of_server if "://" in place else {"path": place}))

    def create(self, width: int) -> None:
        if self.client.collection_exists(self.collection):
            self.client.delete_collection(self.collection)
        shape = self.models.VectorParams(size=width, distance=self.models.Distance.DOT)
        self.client.create_collection(self.collection, vectors_config=shape)

    def versions(self) -> set[str]:
        if not self.client.collection_exists(self.collection):
            return set()
        return {point.payload["version"] for point in self.client.scroll(self.collection, limit=1)[0]}

    def checksums(self) -> dict[int, int]:
        found: dict[int, int] = {}
        offset = None
        while True:
            points, offset = self.client.scroll(self.collection, limit=10_000, offset=offset, with_payload=["checksum"])
            found |= {point.id: point.payload["checksum"] for point in points}
            if offset is None:
                return found

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        points = [
            self.models.PointStruct(id=record.key, vector=list(vector), payload=record.fields())
            for record, vector in zip(records, vectors)
        ]
        self.client.upsert(self.collection, points)

    def delete(self, keys: Sequence[int]) -> None:
        self.client.delete(self.collection, self.models.PointIdsList(points=list(keys)))

    def nearest(self, vector: Sequence[float], k: int) -> list[tuple[float, Record]]:
        points = self.client.query_points(self.collection, query=list(vector), limit=k, with_payload=True).points
        return [(point.score, Record.of(point.payload)) for point in points]

    def get(self, keys: Sequence[int]) -> list[Record]:
        return [Record.of(point.payload) for point in self.client.retrieve(self.collection, list(keys))]

    def count(self, text: str = "") -> int:
        return self.client.count(self.collection, self._holding(text)).count

    def names(self, text: str, start: int, count: int) -> list[str]:
        points, _ = self.client.scroll(
            self.collection, self._holding(text), limit=start + count, with_payload=["image"]
        )
        return [point.payload["image"] for point in points[start:]]

    def close(self) -> None:
        self.client.close()

    def _holding(self, text: str) -> Any:
        if not text:
            return None
        condition = self.models.FieldCondition(key="image", match=self.models.MatchText(text=text))
        return self.models.Filter(must=[condition])


class Milvus:
    """A collection of Milvus, with the index that it chooses by itself."""

    MOST_ROWS = 16_384  # of one answer, those before `start` included

    def __init__(self, place: str, collection: str) -> None:
        from pymilvus import DataType, MilvusClient

        if "://" not in place and not place.endswith(".db"):
            raise UserError(f"milvus:{place}: the file of Milvus Lite has a name that ends in .db")
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it logs is raised, too
        self.types, self.collection = DataType, collection
        self.client = MilvusClient(place, token=os.environ.get(KEY, ""))

    def create(self, width: int) -> None:
        if self.client.has_collection(self.collection):
            self.client.drop_collection(self.collection)
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", self.types.INT64, is_primary=True)
        schema.add_field("vector", self.types.FLOAT_VECTOR, dim=width)
        for name in ("count", "checksum"):
            schema.add_field(name, self.types.INT64)
        for name in ("image", "bits", "place", "version"):
            schema.add_field(name, self.types.VARCHAR, max_length=65_535)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        self.client.create_collection(self.collection, schema=schema, index_params=index, consistency_level="Strong")

    def versions(self) -> set[str]:
        if not self.client.has_collection(self.collection):
            return set()
        self.client.load_collection(self.collection)
        rows = self.client.query(self.collection, filter="", limit=1, output_fields=["version"])
        return {row["version"] for row in rows}

    def checksums(self) -> dict[int, int]:
        rows = self.client.query_iterator(self.collection, batch_size=10_000, output_fields=["key", "checksum"])
        found: dict[int, int] = {}
        while block := rows.next():
            found |= {row["key"]: row["checksum"] for row in block}
        rows.close()
        return found

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        rows = [{**record.fields(), "vector": list(vector)} for record, vector in zip(records, vectors)]
        self.client.upsert(self.collection, rows)

    def delete(self, keys: Sequence[int]) -> None:
        self.client.delete(self.collection, ids=list(keys))

    def nearest(self, vector: Sequence[float], k: int) -> list[tuple[float, Record]]:
        [hits] = self.client.search(
            self.collection, [list(vector)], anns_field="vector", limit=k, output_fields=list(FIELDS)
        )
        return [(hit["distance"], self._record(hit["entity"])) for hit in hits]

    def get(self, keys: Sequence[int]) -> list[Record]:
        return [self._record(row) for row in self.client.get(self.collection, list(keys), output_fields=list(FIELDS))]

    def count(self, text: str = "") -> int:
        rows = self.client.query(self.collection, filter=self._holding(text), output_fields=["count(*)"])
        return rows[0]["count(*)"]

    def names(self, text: str, start: int, count: int) -> list[str]:
        count = min(count, self.MOST_ROWS - start)
        if count <= 0:
            return []
        options = {"filter": self._holding(text), "offset": start, "limit": count, "output_fields": ["image"]}
        return [row["image"] for row in self.client.query(self.collection, **options)]

    def close(self) -> None:
        self.client.close()

    @staticmethod
    def _record(row: dict[str, Any]) -> Record:
        return Record.of({name: row[name] for name in FIELDS})

    @staticmethod
    def _holding(text: str) -> str:
        return f"image like {json.dumps(f'%{text}%', ensure_ascii=False)}" if text else ""


class Postgres:
    """A table of PostgreSQL; searched in full, exactly, unless it is given an index of pgvector."""

    def __init__(self, place: str, table: str) -> None:
        import psycopg
        from psycopg import sql

        self._psycopg, self._sql, self._place = psycopg, sql, place
        self._table, self._connection = sql.Identifier(table), None

    def create(self, width: int) -> None:
        self._run("CREATE EXTENSION IF NOT EXISTS vector")
        self._run("DROP TABLE IF EXISTS {table}")
        columns = (
            "key bigint PRIMARY KEY, image text, count integer, bits bytea, place text, version text, checksum bigint"
        )
        self._run(f"CREATE TABLE {{table}} ({columns}, vector vector({int(width)}))")

    def versions(self) -> set[str]:
        [[there]] = self._run("SELECT to_regclass({name}) IS NOT NULL")
        return {version for (version,) in self._run("SELECT version FROM {table} LIMIT 1")} if there else set()

    def checksums(self) -> dict[int, int]:
        return dict(self._run("SELECT key, checksum FROM {table}"))

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        rows = [(*dataclasses.astuple(record), _text(vector)) for record, vector in zip(records, vectors)]
        names = (*FIELDS, "vector")
        renewed = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        values = ", ".join(["%s"] * len(names))
        order = (
            f"INSERT INTO {{table}} ({', '.join(names)}) VALUES ({values}) ON CONFLICT (key) DO UPDATE SET {renewed}"
        )
        with self._connected().transaction(), self._connected().cursor() as cursor:
            cursor.executemany(self._composed(order), rows)

    def delete(self, keys: Sequence[int]) -> None:
        self._run("DELETE FROM {table} WHERE key = ANY(%s)", [list(keys)])

    def nearest(self, vector: Sequence[float], k: int) -> list[tuple[float, Record]]:
        near = "vector <#> %s::vector"  # the negative inner product
        order = f"SELECT -({near}), {', '.join(FIELDS)} FROM {{table}} ORDER BY {near} LIMIT %s"
        rows = self._run(order, [_text(vector), _text(vector), k])
        return [(similarity, Record(*fields)) for similarity, *fields in rows]

    def get(self, keys: Sequence[int]) -> list[Record]:
        rows = self._run(f"SELECT {', '.join(FIELDS)} FROM {{table}} WHERE key = ANY(%s)", [list(keys)])
        return [Record(*fields) for fields in rows]

    def count(self, text: str = "") -> int:
        [[count]] = self._run("SELECT count(*) FROM {table} WHERE strpos(image, %s) > 0", [text])
        return count

    def names(self, text: str, start: int, count: int) -> list[str]:
        order = "SELECT image FROM {table} WHERE strpos(image, %s) > 0 ORDER BY key OFFSET %s LIMIT %s"
        return [image for (image,) in self._run(order, [text, start, count])]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> Any:
        """A connection, opened again where the server has closed it."""
        if self._connection is None or self._connection.closed:
            self._connection = self._psycopg.connect(self._place, autocommit=True, connect_timeout=10)
        return self._connection

    def _composed(self, order: str) -> Any:
        name = self._sql.Literal(self._table.as_string(None))
        return self._sql.SQL(order).format(table=self._table, name=name)

    def _run(self, order: str, values: Sequence[Any] = ()) -> list[tuple]:
        cursor = self._connected().execute(self._composed(order), values)
        return cursor.fetchall() if cursor.description else []


KINDS = {
    "qdrant": (Qdrant, "qdrant-client"),
    "milvus": (Milvus, "pymilvus milvus-lite"),
    "pgvector": (Postgres, '"psycopg[binary]"'),
}


@functools.cache  # a folder or file can be opened once in a process
def connect(address: str) -> Database:
    """The database at KIND:PLACE#COLLECTION; raises UserError, and Unavailable where it cannot be opened."""
    kind, _, rest = address.partition(":")
    place, _, collection = rest.rpartition("#")
    if kind not in KINDS or not place or not collection:
        raise UserError(f"--database={address}: expected {FORM}")
    opened, packages = KINDS[kind]
    with requires(packages, f"--database={kind}:"):
        try:
            database = opened(place, collection)
        except (ImportError, UserError):
            raise
        except Exception as error:  # of its library: no server there, or another process has the folder open
            raise Unavailable(f"--database={address}: cannot be opened: {_line(error)}") from error
    atexit.register(database.close)
    return database


def ask(address: str, method: str, *arguments: Any) -> Any:
    """The answer of a method of `Database`; raises UserError, and Unavailable where there is none."""
    database = connect(address)
    try:
        return getattr(database, method)(*arguments)
    except Exception as error:  # of its library, or a collection that is not there
        raise Unavailable(f"--database={address} gives no answer: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _text(vector: Sequence[float]) -> str:
    return f"[{','.join(map(repr, vector))}]"
