"""The release's pickles of neighbour lists and ground truth: read safely, and turned into safe files of ours."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ames_jax.data.neighbours import LOCAL, Neighbours, open_neighbours
from ames_jax.data.safe_pickle import read_pickle
from ames_jax.runtime import cache
from ames_jax.runtime.checksums import recorded
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock, read_json, write_blocks, write_file, write_json
from ames_jax.runtime.fingerprints import fingerprint_of
from ames_jax.runtime.progress import Progress

GLDV2_PRIVATE = 750  # queries at the end of GLDv2's test set; the others are public
BLOCK_BYTES = 64 * 2**20
# Whole numbers up to here are exact in float32; the release keeps row numbers as float32.
EXACT_FLOAT32 = 2**24
# A ground truth as it is imported: the two splits, and row lists of every query.
TRUTH = {"query": str, "database": str, "queries": [dict]}
# Two runs that need the same lists: one imports them, and the other waits so long for it.
WAIT_SECONDS = 600


def read_neighbours(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Similarities float [Nq, k] and indices (as floats, mapped from the file) of an `nn_*.pkl`.

    Raises UserError: the file holds something else than one tensor [2, Nq, k], or [3, Nq, k] as ELViS writes them.
    """
    values = _read_lists(path)
    return values[0], values[1]


def _read_lists(path: str | Path) -> np.ndarray:
    """[2, Nq, k], or [3, Nq, k] with the rows of the images in the file of local descriptors."""
    values = read_pickle(path)
    numbers = isinstance(values, np.ndarray) and (values.dtype.kind in "iuf" or values.dtype == ml_dtypes.bfloat16)
    if not numbers or values.ndim != 3 or values.shape[0] not in (2, 3) or 0 in values.shape:
        found = f"shape {values.shape}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise UserError(f"{path}: expected a tensor [2, queries, neighbours], found {found}")
    return values


def read_ground_truth(path: str | Path) -> tuple[list[dict[str, list]], list[str] | None, list[str] | None]:
    """Of a `gnd_*.pkl`: a mapping for each query (row lists "easy", "hard", "junk" or "ok"; "bbx"), database ids, query ids.

    Raises UserError: the file holds something else.
    """
    values = read_pickle(path)
    if not isinstance(values, Mapping) or "gnd" not in values:
        raise UserError(f"{path}: expected a dict with the key gnd, found a {type(values).__name__}")
    if not isinstance(values["gnd"], list | tuple) or not values["gnd"]:
        raise UserError(f"{path}: expected a list under gnd with an entry per query")
    truth = []
    for i, entry in enumerate(values["gnd"]):
        if not isinstance(entry, Mapping) or not ({"ok"} <= set(entry) or {"easy", "hard", "junk"} <= set(entry)):
            raise UserError(f"{path}: query {i} has neither `ok` nor `easy`, `hard`, `junk`")
        kinds = {
            kind: _rows(entry[kind], f"{path}: query {i}: {kind}")
            for kind in ("ok", "easy", "hard", "junk")
            if kind in entry
        }
        if "bbx" in entry:
            kinds["bbx"] = _numbers(entry["bbx"], f"{path}: query {i}: bbx").tolist()
        truth.append(kinds)
    for key in ("imlist", "qimlist"):
        names = values.get(key)
        if names is not None and not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
            raise UserError(f"{path}: expected a list of names under {key}")
    return truth, values.get("imlist"), values.get("qimlist")


def _numbers(values: Any, where: str) -> np.ndarray:
    """float64 [n] of a list or an array; raises UserError for anything else."""
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    wrong = isinstance(values, str | bytes | Mapping) or np.asarray(values).dtype == bool or numbers.ndim != 1
    if wrong or any(isinstance(value, bool) for value in values) or not np.isfinite(numbers).all():
        raise UserError(f"{where}: expected a list of numbers, found a {type(values).__name__} of something else")
    return numbers


def _rows(values: Any, where: str) -> list[int]:
    numbers = _numbers(values, where)
    if (numbers != np.floor(numbers)).any() or (numbers < 0).any() or (numbers >= 2**53).any():
        raise UserError(f"{where}: expected database rows, whole numbers from 0 on")
    return numbers.astype(np.int64).tolist()


def import_neighbours(
    pickle: str | Path,
    folder: str | Path,
    *,
    columns: int | None = None,
    dtype: str = "float32",
    about: Mapping[str, Any] | None = None,
) -> tuple[int, int]:
    """Writes the lists of an `nn_*.pkl` as the files that `open_neighbours` reads, in blocks of rows.

    Of ELViS's files the third row, of each image in the file of local descriptors, is kept where it differs from the second.

    Args:
      pickle: the release's file; it is mapped, not read whole.
      folder: where to, e.g. ROOT/neighbours/test_query.test_gallery.
      columns: only the first this many neighbours of each query.
      dtype: of the similarities, float32 or float16.
      about: free facts.

    Returns:
      queries, and neighbours of each, that were written.

    Raises:
      UserError: the file is refused or damaged, an index is no whole number, or indices too large for float32 were
        stored as float32.
    """
    similarities, indices, *more = _read_lists(pickle)
    columns = min(columns or indices.shape[1], indices.shape[1])
    rows_at_once = max(1, BLOCK_BYTES // (indices.shape[1] * indices.dtype.itemsize))
    blocks = [slice(start, start + rows_at_once) for start in range(0, len(indices), rows_at_once)]
    folder, shape = Path(folder), (len(indices), columns)
    with (
        lock(folder, cache.home(), WAIT_SECONDS),
        Progress(f"importing {Path(pickle).name}", 3 * len(blocks), "blocks") as progress,
    ):
        largest = max(float(np.max(indices[rows, :columns], initial=0)) for rows in progress.over(blocks))
        if largest >= _exact_below(indices.dtype):
            raise UserError(
                f"{pickle}: holds row {largest:.0f} as {indices.dtype}, which cannot tell it from its neighbour: make the "
                "lists again with `python -m ames_jax.prepare neighbours`"
            )
        whole = (_whole_numbers(indices[rows, :columns], pickle, rows.start) for rows in progress.over(blocks))
        values = (_finite(similarities[rows, :columns], pickle, rows.start) for rows in progress.over(blocks))
        local = [rows for rows in more if any(np.any(rows[part] != indices[part]) for part in blocks)]
        with recorded(folder, "indices.npy", "similarities.npy", *([LOCAL] if local else []), "about.json"):
            write_blocks(folder / "indices.npy", whole, np.int64 if largest >= 2**31 else np.int32, shape)
            (folder / LOCAL).unlink(missing_ok=True)  # of lists that were here before
            for rows in local:
                parts = (_whole_numbers(rows[part, :columns], pickle, part.start) for part in blocks)
                write_blocks(folder / LOCAL, parts, np.int64, shape)
            write_blocks(folder / "similarities.npy", values, dtype, shape)
            write_json(folder / "about.json", {"imported_from": Path(pickle).name, **(about or {})})
    return shape


def read_lists(place: Path, copies: Path) -> Neighbours:
    """Neighbour lists, memory-mapped, from a folder of ours or a release `nn_*.pkl`, which is imported to `copies` first.

    Raises UserError for a pickle that is refused, or holds indices that its floats cannot (a database beyond 2²⁴ images).
    """
    if place.suffix != ".pkl":
        return open_neighbours(place)
    if not place.is_file():
        raise UserError(f"{place} is missing")
    facts = {"path": str(place.resolve()), "content": fingerprint_of([place])}
    folder = copies / hashlib.sha256(facts["path"].encode()).hexdigest()[:16]
    if not (folder / "about.json").is_file() or facts.items() - read_json(folder / "about.json").items():
        import_neighbours(place, folder, about=facts)
    return open_neighbours(folder)


def _exact_below(dtype: np.dtype) -> float:
    """Up to here a type holds every whole number; 256 for bfloat16, 2048 for float16, 2²⁴ for float32."""
    return math.inf if dtype.kind in "iu" else 2.0 ** (ml_dtypes.finfo(dtype).nmant + 1)


def _whole_numbers(indices: np.ndarray, pickle: str | Path, start: int) -> np.ndarray:
    if not np.isfinite(indices).all() or (indices != np.floor(indices)).any() or (indices < 0).any():
        raise UserError(f"{pickle}: queries from {start} hold indices that are not whole numbers from 0 on")
    return indices


def _finite(similarities: np.ndarray, pickle: str | Path, start: int) -> np.ndarray:
    if similarities.dtype.kind in "biu":
        raise UserError(
            f"{pickle}: similarities of {similarities.dtype}, rounded to whole numbers; make the lists again"
        )
    good = np.isfinite(similarities).all(axis=1)
    if not good.all():
        query = start + int(np.argmin(good))
        raise UserError(f"{pickle}: query {query} has similarities that are NaN or infinity; make the lists again")
    return similarities


def import_ground_truth(
    pickle: str | Path, path: str | Path, *, query: str, database: str, public: bool = False
) -> int:
    """Writes a `gnd_*.pkl` as JSON: the two splits, and row lists (easy, hard, junk or ok) and box of every query.

    public: GLDv2's private test queries (the last 750) keep no right image, so that they count in no figure: what is chosen
      on the public ones was not chosen on them.

    Returns:
      the number of queries.

    Raises UserError: the file is refused, damaged, or no ground truth.
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
    with recorded(path.parent, path.name):
        write_file(path, json.dumps(truth))
    return len(queries)
