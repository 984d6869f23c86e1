"""Exact nearest neighbours in global descriptors: blocks of queries against blocks of the database, on all local devices."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32

from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.progress import Progress

BLOCK, CACHE_BYTES = 8192, 8 * 2**30


@runtime_checkable
class Rows(Protocol):
    """Global descriptors [N, Dg], float16 or float32: an array, a memory map, or files (`GlobalDescriptors`)."""

    shape: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


def nearest(
    queries: Rows,
    database: Rows,
    k: int,
    *,
    exclude_self: bool = False,
    block: int = BLOCK,
    devices: list[jax.Device] | None = None,
) -> tuple[Float32[np.ndarray, "Nq {k}"], Int32[np.ndarray, "Nq {k}"]]:
    """The k largest inner products of every query with the database, exact, on all devices of this process.

    Args:
      queries: [Nq, Dg]; database: [N, Dg].
      k: neighbours of each query.
      exclude_self: leave database row i out of the list of query i (for a set searched in itself).
      block: rows of queries and of the database that meet at once.
      devices: devices to share the queries of a block; by default all that this process has.

    Returns:
      similarities, falling, and indices; equals keep the database's order.

    Raises UserError: when the widths differ or the database has fewer than k rows to give.
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

    Cost: 2 · Nq · N · Dg operations, and the database read Nq / block times (once where it fits `CACHE_BYTES` on the
    device). Memory beyond the result: block² similarities and 2 · block · Dg values, whatever Nq and N are.
    GLDv2 (750k × 750k, 768 values) is 0.9 PFLOP: some hours on 2 CPU cores, a minute or two on one accelerator.
    For k above `block` (whole rankings, as ROxford+1M is judged on) no partial lists are merged: so few queries are taken
    at once that all their similarities are block² values or the width of the database, and these are sorted on the host.
    """

    def __init__(
        self,
        database: Rows,
        k: int,
        *,
        exclude_self: bool = False,
        block: int = BLOCK,
        devices: list[jax.Device] | None = None,
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
        self._keep = on_accelerator and len(database) * database.shape[1] * 4 <= CACHE_BYTES
        self._kept: dict[int, jax.Array] = {}

    def run(self, queries: Rows, starts: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
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


def race_faiss(queries: Rows, database: Rows, k: int, *, block: int = BLOCK) -> str:
    """Searches one block of queries with `BlockSearch` and with `faiss.IndexFlatIP` on the CPU: one line with times and ratio.

    Raises UserError: faiss is not installed.
    """
    with requires("faiss-cpu", "comparing"):
        import faiss
    with Progress("comparing with faiss"):
        first = np.ascontiguousarray(queries[:block], np.float32)
        whole = np.ascontiguousarray(database[:], np.float32)
        search = BlockSearch(whole, k, block=block)
        list(search.run(first, [0]))  # compiles
        start = time.perf_counter()
        ((_, _, rows),) = search.run(first[: search.block], [0])
        ours = time.perf_counter() - start
        index = faiss.IndexFlatIP(whole.shape[1])
        index.add(whole)
        start = time.perf_counter()
        _, theirs_rows = index.search(first[: search.block], k)
        theirs = time.perf_counter() - start
    device = jax.local_devices()[0]
    return (
        f"{len(rows)} queries × {len(whole)} × {whole.shape[1]}, k = {k}: {ours:.2f} s on {len(jax.local_devices())} "
        f"{device.platform} device(s), faiss.IndexFlatIP {theirs:.2f} s on the CPU; ratio {ours / theirs:.2f}; "
        f"{100 * (rows == theirs_rows).mean():.3f} % of the entries equal"
    )
