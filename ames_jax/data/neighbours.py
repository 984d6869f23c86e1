"""Neighbour lists on disk, and searches that take hours: written block by block, shared by hosts, continued after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.neighbour_search import BLOCK, BlockSearch, Rows
from ames_jax.runtime import cache
from ames_jax.runtime.checksums import checksum, entries, note_unchecked, record, recorded, sealed, unsealed
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import (
    digest_of,
    lock,
    read_array,
    read_json,
    same_job,
    write_array,
    write_blocks,
    write_json,
)
from ames_jax.runtime.progress import Progress

UNFINISHED = ".unfinished"
ARRAYS = {"indices": np.int32, "similarities": np.float32}
LOCAL = "local_rows.npy"  # of lists that were imported from ELViS's files
FILES = (*(f"{name}.npy" for name in ARRAYS), "about.json")


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Neighbour lists, memory-mapped: row i holds the neighbours of query image i, the most similar first.

    Attributes:
      indices: int32 or int64 [Nq, k], rows of the database.
      similarities: float32 or float16 [Nq, k], falling.
      about: free facts, e.g. {"exclude_self": true}.
      local: int64 [Nq, k], rows of the same images in the file of local descriptors, where these are others; else None.
    """

    indices: np.ndarray
    similarities: np.ndarray
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    local: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def first_stage(self, otherwise: str | None) -> str:
        """The name of the search that made the lists, for results: what the lists say, else `otherwise`."""
        return self.about.get("global") or otherwise or "the given lists"


def open_neighbours(folder: str | Path) -> Neighbours:
    """Opens neighbour lists as memory maps.

    Raises UserError: when a file is missing or the two arrays do not belong together.
    """
    folder = Path(folder)
    for path in (path for path in (folder / f"{name}.npy" for name in ARRAYS) if not path.exists()):
        raise UserError(f"{path} is missing; make neighbour lists with `python -m ames_jax.prepare neighbours`")
    indices, similarities = (read_array(folder / f"{name}.npy", mapped=True) for name in ARRAYS)
    if indices.shape != similarities.shape or indices.ndim != 2 or similarities.dtype.kind != "f":
        raise UserError(
            f"{folder}: indices {indices.dtype} {indices.shape} and similarities {similarities.dtype} "
            f"{similarities.shape} do not match; expected whole numbers and floats [queries, neighbours]"
        )
    if indices.dtype.kind != "i":
        indices = _as_rows(indices, folder / "indices.npy")
    note_unchecked(folder / "indices.npy")
    about = read_json(folder / "about.json", keys={"global?": str}, missing={})
    local = read_array(folder / LOCAL, mapped=True) if (folder / LOCAL).exists() else None
    if local is not None and (local.shape != indices.shape or local.dtype.kind != "i"):
        raise UserError(f"{folder / LOCAL}: {local.dtype} {local.shape}, expected whole numbers {indices.shape}")
    return Neighbours(indices, similarities, about, local)


def _as_rows(indices: np.ndarray, path: Path) -> np.ndarray:
    """int64 from other numbers; raises UserError where they are not whole, or of a float type too short to tell them."""
    exact = 2 ** (np.finfo(indices.dtype).nmant + 1) if indices.dtype.kind == "f" else 2**63
    with np.errstate(invalid="ignore"):
        rows = np.asarray(indices).astype(np.int64)
    if indices.dtype.kind == "b" or (rows != indices).any() or (rows.size and rows.max() >= exact):
        raise UserError(
            f"{path}: {indices.dtype} values that are no rows of a database; expected whole numbers (int32)"
        )
    return rows


def save_neighbours(
    folder: str | Path, similarities: np.ndarray, indices: np.ndarray, about: Mapping[str, Any] | None = None
) -> None:
    """Writes lists [Nq, k]: indices.npy (int32, or int64 past 2³¹), similarities.npy (dtype kept) and about.json."""
    folder = Path(folder)
    wide = indices.size and int(indices.max()) >= 2**31
    with recorded(folder, *FILES):
        write_array(folder / "indices.npy", np.asarray(indices, np.int64 if wide else np.int32))
        write_array(folder / "similarities.npy", similarities)
        write_json(folder / "about.json", dict(about or {}))


def search_to_folder(
    folder: str | Path,
    queries: Rows,
    database: Rows,
    k: int,
    *,
    exclude_self: bool = False,
    block: int = BLOCK,
    process: int = 0,
    processes: int = 1,
) -> bool:
    """Writes the neighbour lists of `open_neighbours`; see `BlockSearch` for what they are and what they cost.

    Blocks of queries that are done are kept through a kill, and the bytes at the end are those of an unbroken run.

    Args:
      folder: where to; hosts that share the work must all see it.
      queries, database, k, exclude_self, block: as in `nearest`.
      process, processes: this host does every `processes`-th block, from `process` on.

    Returns:
      True when the lists are complete; False when other hosts still have blocks to do.

    Raises:
      UserError: the folder holds other lists, or an unfinished search with other settings or descriptors; another process
        does this host's part.
    """
    folder = Path(folder)
    search = BlockSearch(database, k, exclude_self=exclude_self, block=block)
    if not 0 <= process < processes:
        raise UserError(f"process {process} of {processes}: count hosts from 0 to {processes - 1}")
    settings = {
        "k": k,
        "exclude_self": exclude_self,
        "block": search.block,
        "queries": _described(queries),
        "database": _described(database),
        "inputs": [_content(queries), _content(database)],
    }
    facts, advice = {**settings, "made_by": "exact inner product search"}, "Name another folder, or delete this one"
    about = folder / "about.json"
    starts = range(0, len(queries), search.block)
    mine = starts[process::processes]
    with lock(folder / UNFINISHED / f"{process}", cache.home()):
        if about.exists():
            same_job(about, facts, later=("inputs",), advice=advice)
            _clear(folder)
            return True
        same_job(folder / UNFINISHED / "settings.json", settings, later=("inputs",), advice=advice)
        todo = [start for start in mine if not _is_whole(folder, start)]
        label = f"{len(queries)} × {len(database)}"
        with Progress(label, len(mine), "blocks", done=len(mine) - len(todo)) as progress:
            for start, similarities, indices in progress.over(search.run(queries, todo)):
                write_array(_block(folder, "indices", start), indices)
                write_array(_block(folder, "similarities", start), similarities)
                write_json(_receipt(folder, start), sealed(_sums(folder, start)))  # the block is done
        if all(_receipt(folder, start).exists() for start in starts):
            _join(folder, starts, (len(queries), k), facts)
    return about.exists()


def _described(values: Rows) -> list:
    """Shape, and a checksum of the first and the last row, so that other descriptors are not taken for these."""
    ends = np.concatenate([values[:1], values[len(values) - 1 :]])
    return [*values.shape, hashlib.sha256(np.ascontiguousarray(ends, np.float32)).hexdigest()[:16]]


def _content(values: Rows) -> str:
    """A hash of all rows, so that descriptors changed in the middle are not taken for these."""
    return digest_of(values) if isinstance(values, np.ndarray) else values.content()


def _block(folder: Path, name: str, start: int) -> Path:
    return folder / UNFINISHED / f"{start}.{name}.npy"


def _receipt(folder: Path, start: int) -> Path:
    return folder / UNFINISHED / f"{start}.json"


def _sums(folder: Path, start: int) -> dict[str, int | None]:
    """Checksums of a block's files that are there."""
    paths = {name: _block(folder, name, start) for name in ARRAYS}
    return {name: checksum(path) if path.exists() else None for name, path in paths.items()}


def _is_whole(folder: Path, start: int) -> bool:
    """True for a block that is done, and as it was written."""
    receipt = _receipt(folder, start)
    return unsealed(receipt, read_json(receipt, missing={})) == _sums(folder, start)


def _join(folder: Path, starts: Sequence[int], shape: tuple[int, int], facts: Mapping[str, Any]) -> None:
    """Makes one file of the blocks of each array. Hosts may get here together: each makes its own, and they are equal."""
    own = folder / UNFINISHED / f"{socket.gethostname()}.{os.getpid()}"
    try:
        for start in (start for start in starts if not _is_whole(folder, start)):
            raise UserError(f"{_receipt(folder, start)}: its block is damaged; give the same command again")
        with recorded(folder, *FILES):
            for name, dtype in ARRAYS.items():
                blocks = (read_array(_block(folder, name, start)) for start in starts)
                write_blocks(own / f"{name}.npy", blocks, dtype, shape)
                os.replace(own / f"{name}.npy", folder / f"{name}.npy")
            write_json(folder / "about.json", facts)
    except (UserError, FileNotFoundError):
        if not (folder / "about.json").exists():  # else another host was first, and has removed the blocks
            raise
        record(folder, *FILES)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Ends what a run that was killed after the last file of the lists had left to do."""
    if (folder / UNFINISHED).exists():
        if not entries(folder).keys() >= set(FILES):
            record(folder, *FILES)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
