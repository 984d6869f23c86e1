"""Searches that take hours: written block by block, shared by hosts, continued after a kill; and a race with faiss."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.neighbours import BLOCK, BlockSearch
from ames_jax.data.shard_tasks import write_text
from ames_jax.runtime.errors import UserError

UNFINISHED = ".unfinished"


def search_to_folder(
    folder: str | Path,
    queries: np.ndarray | GlobalDescriptors,
    database: np.ndarray | GlobalDescriptors,
    k: int,
    *,
    exclude_self: bool = False,
    block: int = BLOCK,
    process: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Writes the neighbour lists of `open_neighbours`; see `BlockSearch` for what they are and what they cost.

    Blocks of queries that are done are kept through a kill, and the bytes at the end are those of an unbroken run.

    Args:
      folder: where to; hosts that share the work must all see it.
      queries, database, k, exclude_self, block: as in `nearest`.
      process, processes: this host does every `processes`-th block, from `process` on.
      progress: called with the blocks done and to be done by this host.

    Returns:
      True when the lists are complete; False when other hosts still have blocks to do.

    Raises:
      UserError: the folder holds other lists, or an unfinished search with other settings or descriptors.
    """
    folder = Path(folder)
    search = BlockSearch(database, k, exclude_self=exclude_self, block=block)
    if not 0 <= process < processes:
        raise UserError(f"process {process} of {processes}: count hosts from 0 to {processes - 1}")
    settings = {
        "k": k, "exclude_self": exclude_self, "block": search.block, "queries": _described(queries),
        "database": _described(database),
    }  # fmt: skip
    if _is_finished(folder, settings):
        return True
    _claim(folder, settings)
    starts = range(0, len(queries), search.block)
    mine = starts[process::processes]
    todo = [start for start in mine if not _mark(folder, start).exists()]
    progress(len(mine) - len(todo), len(mine))
    if todo:
        shape = (len(queries), k)
        indices, similarities = (_array(folder / UNFINISHED / f"{n}.npy", d, shape) for n, d in _ARRAYS.items())
    for done, (start, found, rows) in enumerate(search.run(queries, todo), start=len(mine) - len(todo) + 1):
        indices[start : start + len(rows)] = rows
        similarities[start : start + len(rows)] = found
        # The mark must not reach the disk before the block does.
        indices.flush()
        similarities.flush()
        _mark(folder, start).touch()
        progress(done, len(mine))
    if all(_mark(folder, start).exists() for start in starts):
        _finish(folder, settings)
    return _is_finished(folder, settings)


def _described(values: np.ndarray | GlobalDescriptors) -> list:
    """Shape, and a checksum of the first and the last row, so that other descriptors are not taken for these."""
    ends = np.concatenate([values[:1], values[len(values) - 1 :]])
    return [*values.shape, hashlib.sha256(np.ascontiguousarray(ends, np.float32)).hexdigest()[:16]]


def _is_finished(folder: Path, settings: dict) -> bool:
    """True when the folder holds the lists of these settings; raises UserError when it holds others."""
    path = folder / "about.json"
    if not path.exists():
        return False
    before, now = json.loads(path.read_text()), _about(settings)
    if before != now:
        differs = ", ".join(f"{key} = {before.get(key)}" for key in now if before.get(key) != now[key])
        raise UserError(f"{folder} holds other neighbour lists ({differs}): name another folder, or delete this one")
    return True


def _about(settings: dict) -> dict:
    return {**settings, "made_by": "exact inner product search"}


def _claim(folder: Path, settings: dict) -> None:
    """Keeps the settings of an unfinished search, or checks that they are these."""
    path = folder / UNFINISHED / "settings.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings))
    before = json.loads(path.read_text())
    for key in (key for key in settings if before[key] != settings[key]):
        raise UserError(
            f"{folder} holds an unfinished search with {key} = {before[key]}, now {key} = {settings[key]}: "
            f"use the same settings, or delete {path.parent}"
        )


_ARRAYS = {"indices": np.int32, "similarities": np.float32}


def _array(path: Path, dtype: type, shape: tuple[int, int]) -> np.memmap:
    if not path.exists():
        # Made whole under another name: hosts that start together must not see half a header.
        unfinished = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
        np.lib.format.open_memmap(unfinished, "w+", dtype, shape).flush()
        with contextlib.suppress(FileExistsError):  # another host was first
            os.link(unfinished, path)
        unfinished.unlink()
    return np.lib.format.open_memmap(path, "r+")


def _mark(folder: Path, start: int) -> Path:
    return folder / UNFINISHED / f"{start}.done"


def _finish(folder: Path, settings: dict) -> None:
    # Hosts may get here together, or again after a kill: whoever comes first moves a file.
    for name in _ARRAYS:
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / UNFINISHED / f"{name}.npy", folder / f"{name}.npy")
    write_text(folder / "about.json", json.dumps(_about(settings), indent=1))
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def race_faiss(
    queries: np.ndarray | GlobalDescriptors, database: np.ndarray | GlobalDescriptors, k: int, *, block: int = BLOCK
) -> str:
    """Searches one block of queries with `BlockSearch` and with `faiss.IndexFlatIP` on the CPU: a line with times and ratio.

    Raises:
      UserError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("comparing needs faiss: pip install faiss-cpu") from None
    some = np.ascontiguousarray(queries[:block], np.float32)
    whole = np.ascontiguousarray(database[:], np.float32)
    search = BlockSearch(whole, k, block=block)
    list(search.run(some, [0]))  # compiles
    start = time.perf_counter()
    ((_, _, rows),) = search.run(some[: search.block], [0])
    ours = time.perf_counter() - start
    index = faiss.IndexFlatIP(whole.shape[1])
    index.add(whole)
    start = time.perf_counter()
    _, theirs_rows = index.search(some[: search.block], k)
    theirs = time.perf_counter() - start
    device = jax.local_devices()[0]
    return (
        f"{len(rows)} queries × {len(whole)} × {whole.shape[1]}, k = {k}: {ours:.2f} s on {len(jax.local_devices())} "
        f"{device.platform} device(s), faiss.IndexFlatIP {theirs:.2f} s on the CPU; ratio {ours / theirs:.2f}; "
        f"{100 * (rows == theirs_rows).mean():.3f} % of the entries equal"
    )
