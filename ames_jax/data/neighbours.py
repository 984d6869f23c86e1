"""Nearest neighbours in global descriptors: exact blockwise search, and the files that hold its result."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ames_jax.runtime.errors import UserError

BLOCK = 8192


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Neighbour lists, memory-mapped: row i holds the neighbours of query image i, the most similar first.

    Attributes:
      indices: int32 or int64 [Nq, k], rows of the database.
      similarities: float32 or float16 [Nq, k], falling.
      about: free facts, e.g. {"exclude_self": true}.
    """

    indices: np.ndarray
    similarities: np.ndarray
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)

    def first_stage(self, otherwise: str | None) -> str:
        """How results name the search that made the lists: what the lists say, else `otherwise`, else that they are given."""
        return self.about.get("global") or otherwise or "the given lists"


def nearest(
    queries: np.ndarray,
    database: np.ndarray,
    k: int,
    *,
    exclude_self: bool = False,
    block: int = BLOCK,
    devices: list[jax.Device] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest inner products of every query with the database, exact, on all devices of this process.

    Args:
      queries: [Nq, Dg] float16 or float32, an array or a memory map.
      database: [N, Dg] likewise.
      k: neighbours a query.
      exclude_self: leave database row i out of the list of query i (for a set searched in itself).
      block: rows of queries and of the database that meet at once.
      devices: devices to share the queries of a block; by default all that this process has.

    Returns:
      similarities float32 [Nq, k], falling, and indices int32 [Nq, k]; equals keep the database's order.

    Raises:
      UserError: when the widths differ or the database has fewer than k rows to give.
    """
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int32)
    search = BlockSearch(database, k, exclude_self=exclude_self, block=block, devices=devices)
    for start, found, rows in search.run(queries, range(0, len(queries), search.block)):
        similarities[start : start + len(found)] = found
        indices[start : start + len(found)] = rows
    return similarities, indices


class BlockSearch:
    """Exact search of a database, a block of queries at a time.

    Cost: 2 · Nq · N · Dg operations, and the database read Nq / block times (once where it fits `cache_bytes` on the
    device). Memory beyond the result: block² similarities and 2 · block · Dg values, whatever Nq and N are.
    GLDv2 (750k × 750k, 768 values) is 0.9 PFLOP: some hours on 2 CPU cores, a minute or two on one accelerator.
    For k above `block` (whole rankings, as ROxford+1M is judged on) no partial lists are merged: so few queries are taken
    at once that all their similarities are block² values or the width of the database, and these are sorted on the host.
    """

    def __init__(
        self,
        database: np.ndarray,
        k: int,
        *,
        exclude_self: bool = False,
        block: int = BLOCK,
        devices: list[jax.Device] | None = None,
        cache_bytes: int = 8 * 2**30,
    ) -> None:
        available = len(database) - (1 if exclude_self else 0)
        if not 0 < k <= available:
            raise UserError(f"asked for {k} neighbours of each image, but the database has {available} to give")
        if len(database) >= 2**31:
            raise UserError(f"the database has {len(database)} rows; a search holds row numbers in 32 bits")
        devices = devices if devices is not None else jax.local_devices()
        self.database, self.k, self.exclude_self = database, k, exclude_self
        self._rows = block
        # Every device takes an equal part of a block of queries.
        queries = block if k <= block else block**2 // len(database)
        self.block = max(len(devices), queries - queries % len(devices))
        self._mesh = Mesh(np.array(devices), ("data",))
        on_accelerator = devices[0].platform != "cpu"
        self._keep = on_accelerator and len(database) * database.shape[1] * 4 <= cache_bytes
        self._kept: dict[int, jax.Array] = {}

    def run(self, queries: np.ndarray, starts: range | list[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each start: the start, and similarities float32 and indices int32 [≤ block, k] of the queries from it."""
        if queries.shape[1] != self.database.shape[1]:
            raise UserError(
                f"queries have {queries.shape[1]} values, the database {self.database.shape[1]}: "
                "give global descriptors of the same network"
            )
        for start in starts:
            rows = queries[start : start + self.block]
            search = self._search if self.k <= self._rows else self._rank
            yield start, *(result[: len(rows)] for result in search(rows, start))

    def _query(self, rows: np.ndarray, start: int) -> tuple[int, jax.Array]:
        """Queries on the devices, and their number with the padding that gives every device as many."""
        count = -(-len(rows) // self._mesh.size) * self._mesh.size
        split = NamedSharding(self._mesh, PartitionSpec("data"))
        return count, jax.device_put(_padded(rows, count, f"query rows from {start}"), split)

    def _rank(self, rows: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """The head of whole rankings, for a k that is too long to be merged block by block."""
        _, query = self._query(rows, start)
        similarities = np.empty((len(rows), len(self.database)), np.float32)
        for first in range(0, len(self.database), self._rows):
            part = similarities[:, first : first + self._rows]
            part[:] = np.asarray(_product(query, self._database_block(first)))[: len(rows), : part.shape[1]]
        if self.exclude_self:
            similarities[np.arange(len(rows)), np.arange(start, start + len(rows))] = -np.inf
        order = np.argsort(-similarities, axis=1, kind="stable")[:, : self.k].astype(np.int32)
        return np.take_along_axis(similarities, order, axis=1), order

    def _search(self, rows: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        count, query = self._query(rows, start)
        split = NamedSharding(self._mesh, PartitionSpec("data"))
        own = np.arange(start, start + count, dtype=np.int32) if self.exclude_self else np.full(count, -1, np.int32)
        own = jax.device_put(own, split)
        best = jax.device_put(np.full((count, self.k), -np.inf, np.float32), split)
        where = jax.device_put(np.zeros((count, self.k), np.int32), split)
        end = np.int32(len(self.database))
        for first in range(0, len(self.database), self._rows):
            best, where = _merge(self._mesh)(best, where, query, own, self._database_block(first), np.int32(first), end)
        return np.asarray(best), np.asarray(where)

    def _database_block(self, first: int) -> jax.Array:
        if first in self._kept:
            return self._kept[first]
        rows = self.database[first : first + self._rows]
        count = min(self._rows, len(self.database))
        placed = jax.device_put(
            _padded(rows, count, f"database rows from {first}"), NamedSharding(self._mesh, PartitionSpec())
        )
        if self._keep:
            self._kept[first] = placed
        return placed


@jax.jit
def _product(query: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.matmul(query, block.T, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache
def _merge(mesh: Mesh) -> Any:
    """The compiled step: joins the best of so far with a block of the database, on every device for its own queries."""
    split, whole = PartitionSpec("data"), PartitionSpec()

    def merge(best, where, query, own, block, first, end):
        similarity = _product(query, block)
        column = first + jnp.arange(block.shape[0], dtype=jnp.int32)
        hidden = (column >= end)[None, :] | (column[None, :] == own[:, None])
        similarity = jnp.where(hidden, -jnp.inf, similarity)
        k = best.shape[1]
        new, position = jax.lax.top_k(similarity, min(k, block.shape[0]))
        # Earlier rows stand first and top_k keeps the order of equals, so ties go to the lower row.
        both = jnp.concatenate([best, new], axis=1)
        rows = jnp.concatenate([where, first + position], axis=1)
        best, chosen = jax.lax.top_k(both, k)
        return best, jnp.take_along_axis(rows, chosen, axis=1)

    specs = (split, split, split, split, whole, whole, whole)
    return jax.jit(jax.shard_map(merge, mesh=mesh, in_specs=specs, out_specs=(split, split)))


def _padded(rows: np.ndarray, count: int, name: str) -> np.ndarray:
    """float32 [count, Dg] with zero rows at the end; raises UserError for NaN or infinity."""
    out = np.zeros((count, rows.shape[1]), np.float32)
    out[: len(rows)] = rows
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(out.sum(dtype=np.float64))  # one pass, and no array of flags
    if not finite:
        raise UserError(f"{name} hold NaN or infinity: `python -m ames_jax.prepare validate` names the first image")
    return out


def save_neighbours(
    folder: str | Path, similarities: np.ndarray, indices: np.ndarray, about: Mapping[str, Any] | None = None
) -> None:
    """Writes lists [Nq, k]: indices.npy (int32, or int64 past 2³¹), similarities.npy (dtype kept) and about.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wide = indices.size and int(indices.max()) >= 2**31
    np.save(folder / "indices.npy", np.ascontiguousarray(indices, np.int64 if wide else np.int32))
    np.save(folder / "similarities.npy", np.ascontiguousarray(similarities))
    (folder / "about.json").write_text(json.dumps(dict(about or {}), indent=1), encoding="utf-8")


def open_neighbours(folder: str | Path) -> Neighbours:
    """Opens neighbour lists as memory maps.

    Raises:
      UserError: when a file is missing or the two arrays do not belong together.
    """
    folder = Path(folder)
    arrays = {}
    for name in ("indices", "similarities"):
        path = folder / f"{name}.npy"
        if not path.exists():
            raise UserError(f"{path} is missing; make neighbour lists with `python -m ames_jax.prepare neighbours`")
        arrays[name] = np.load(path, mmap_mode="r")
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or arrays["indices"].ndim != 2 or arrays["indices"].dtype.kind != "i":
        raise UserError(f"{folder}: indices {shapes['indices']} and similarities {shapes['similarities']} do not match")
    about = folder / "about.json"
    return Neighbours(**arrays, about=json.loads(about.read_text(encoding="utf-8")) if about.exists() else {})
