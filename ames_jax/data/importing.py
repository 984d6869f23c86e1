"""Neighbour and ground-truth pickles of the release become safe files of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.release_files import GLDV2_PRIVATE, read_ground_truth, read_neighbours
from ames_jax.data.shard_tasks import write_text
from ames_jax.runtime.errors import UserError

BLOCK_BYTES = 64 * 2**20
# Whole numbers up to here are exact in float32; the release keeps row numbers as float32.
EXACT_FLOAT32 = 2**24


def import_neighbours(
    pickle: str | Path,
    folder: str | Path,
    *,
    columns: int | None = None,
    dtype: str = "float32",
    about: Mapping[str, Any] | None = None,
) -> tuple[int, int]:
    """Writes the lists of an `nn_*.pkl` as the files that `open_neighbours` reads, in blocks of rows.

    Args:
      pickle: the release's file; it is mapped, not read whole.
      folder: where to, e.g. ROOT/neighbours/test_query.test_gallery.
      columns: only the first this many neighbours of each query.
      dtype: of the similarities, float32 or float16.
      about: free facts.

    Returns:
      queries and neighbours a query that were written.

    Raises:
      UserError: the file is refused or damaged, an index is no whole number, or indices too large for float32 were
        stored as float32.
    """
    similarities, indices = read_neighbours(pickle)
    count, wide = len(indices), indices.dtype.itemsize > 4
    columns = min(columns or indices.shape[1], indices.shape[1])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows_at_once = max(1, BLOCK_BYTES // (indices.shape[1] * indices.dtype.itemsize))
    blocks = [slice(start, start + rows_at_once) for start in range(0, count, rows_at_once)]
    largest = max(float(np.max(indices[rows, :columns], initial=0)) for rows in blocks)
    if not wide and indices.dtype.kind == "f" and largest >= EXACT_FLOAT32:
        raise UserError(
            f"{pickle}: holds row {largest:.0f} as {indices.dtype}, which cannot tell it from its neighbour: make the "
            "lists again with `python -m ames_jax.prepare neighbours`"
        )
    stored = np.int64 if largest >= 2**31 else np.int32
    dtypes = {"indices": stored, "similarities": np.dtype(dtype)}
    # Processes that import the same file at the same time must not share half-written ones.
    partial = {name: folder / f".{name}.{os.uname().nodename}.{os.getpid()}.npy" for name in dtypes}
    out = {name: np.lib.format.open_memmap(partial[name], "w+", d, (count, columns)) for name, d in dtypes.items()}
    for rows in blocks:
        block = np.asarray(indices[rows, :columns])
        if not np.isfinite(block).all() or (block != np.floor(block)).any():
            raise UserError(f"{pickle}: queries from {rows.start} hold indices that are not whole numbers")
        out["indices"][rows] = block
        out["similarities"][rows] = similarities[rows, :columns]
    for name, array in out.items():
        array.flush()
        os.replace(partial[name], folder / f"{name}.npy")
    facts = {"imported_from": Path(pickle).name, **(about or {})}
    write_text(folder / "about.json", json.dumps(facts, indent=1))
    return count, columns


def import_ground_truth(
    pickle: str | Path, path: str | Path, *, query: str, database: str, public: bool = False
) -> int:
    """Writes a `gnd_*.pkl` as JSON: the two splits, and row lists (easy, hard, junk or ok) and box of every query.

    public: of GLDv2's test queries, the private ones (the last 750) lose their right images, and with them every say in a
    figure: what is chosen on the rest was not chosen on them.

    Returns:
      the number of queries.

    Raises:
      UserError: the file is refused, damaged, or no ground truth.
    """
    queries, database_ids, query_ids = read_ground_truth(pickle)
    if public:
        if len(queries) <= GLDV2_PRIVATE:
            raise UserError(
                f"{pickle}: {len(queries)} queries, of which the last {GLDV2_PRIVATE} would be private: not GLDv2"
            )
        queries[-GLDV2_PRIVATE:] = [{"ok": []}] * GLDV2_PRIVATE
    truth = {"query": query, "database": database, "queries": queries}
    for name, ids in (("query_ids", query_ids), ("database_ids", database_ids)):
        if ids is not None:
            truth[name] = list(ids)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(truth))
    return len(queries)
