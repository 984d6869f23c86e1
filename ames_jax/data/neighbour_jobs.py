"""Searches that take hours: written block by block, shared by hosts, continued after a kill; and a race with faiss."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ames_jax.data.neighbours import BLOCK, BlockSearch
from ames_jax.errors import UserError

UNFINISHED = ".unfinished"


def search_to_folder(
    folder: str | Path,
    queries: np.ndarray,
    database: np.ndarray,
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
      UserError: the folder holds an unfinished search with other settings.
    """
    folder = Path(folder)
    search = BlockSearch(database, k, exclude_self=exclude_self, block=block)
    settings = {
        "k": k, "exclude_self": exclude_self, "block": search.block, "queries": list(queries.shape),
        "database": list(database.shape),
    }  # fmt: skip
    if (folder / "about.json").exists() and json.loads((folder / "about.json").read_text()) == _about(settings):
        return True
    indices, similarities = _claim(folder, settings)
    starts = range(0, len(queries), search.block)
    mine = starts[process::processes]
    todo = [start for start in mine if not _mark(folder, start).exists()]
    progress(len(mine) - len(todo), len(mine))
    for done, (start, found, rows) in enumerate(search.run(queries, todo), start=len(mine) - len(todo) + 1):
        indices[start : start + len(rows)] = rows
        similarities[start : start + len(rows)] = found
        # The mark must not reach the disk before the block does.
        indices.flush()
        similarities.flush()
        _mark(folder, start).touch()
        progress(done, len(mine))
    if not all(_mark(folder, start).exists() for start in starts):
        return False
    _finish(folder, settings)
    return True


def _about(settings: dict) -> dict:
    return {**settings, "made_by": "exact inner product search"}


def _claim(folder: Path, settings: dict) -> tuple[np.memmap, np.memmap]:
    """The two arrays of an unfinished search, made where they are not there yet."""
    work = folder / UNFINISHED
    path = work / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        for key in (key for key in settings if before[key] != settings[key]):
            raise UserError(
                f"{folder} holds an unfinished search with {key} = {before[key]}, now {key} = {settings[key]}: "
                f"use the same settings, or delete {work}"
            )
    else:
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    shape = (settings["queries"][0], settings["k"])
    return tuple(_array(work / f"{name}.npy", dtype, shape) for name, dtype in _ARRAYS.items())


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
    for name in _ARRAYS:
        os.replace(folder / UNFINISHED / f"{name}.npy", folder / f"{name}.npy")
    (folder / "about.json").write_text(json.dumps(_about(settings), indent=1))
    shutil.rmtree(folder / UNFINISHED)


def race_faiss(queries: np.ndarray, database: np.ndarray, k: int, *, block: int = BLOCK) -> str:
    """Searches one block of queries with `BlockSearch` and with `faiss.IndexFlatIP` on the CPU: a line with times and ratio.

    Raises:
      UserError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("comparing needs faiss: pip install faiss-cpu") from None
    some = np.ascontiguousarray(queries[:block], np.float32)
    whole = np.ascontiguousarray(database, np.float32)
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
