"""Files: the one way in which ours are written, compared and checked.

A file or a folder of ours appears whole or not at all. It is written beside its place as `.NAME.partial`, which takes the
name at the end; what a killed process left there, the next run of the same job clears. Jobs that write hold `lock`, so two
never share a `.partial`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ames_jax.runtime.checksums import check, entries, recorded
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.paths import is_remote
from ames_jax.runtime.schema import check_keys

MOST_READ_AT_ONCE = 1 << 32


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path to write a file to; it takes the name `path` when the block ends without an error. Disk only.

    Raises UserError where `path` is a device or a folder, which a file must not replace.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder or a device; name a file to write")
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with recorded(path.parent, *entries(path.parent).keys() & {path.name}):  # what is known of it stays true
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all; text as UTF-8 with line ends as they are. Raises OSError.

    An object in a bucket appears whole by itself.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)
        return
    try:
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except FileNotFoundError as error:  # a place such as /proc, in which nothing is written
        raise UserError(f"{path} cannot be written: {error.strerror}; name another place") from error


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill; it takes the name `path` when the block ends without an error.

    replace: an older folder of that name makes way; otherwise one that appeared meanwhile stays, and the new one goes.
    """
    partial, old = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace and path.exists():
            path.rename(old)
        if not path.exists():
            partial.rename(path)
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_whole(path: Path) -> bytes:
    """The content of a file of text or of a model; raises UserError for one so large that it must be something else."""
    if not is_remote(path) and (size := path.stat().st_size) > MOST_READ_AT_ONCE:
        raise UserError(f"{path} has {size / 1e9:,.1f} GB: it is damaged or something else; copy or write it again")
    return path.read_bytes()


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as JSON, whole or not at all; NaN becomes null, NumPy's numbers and arrays plain ones."""
    write_file(path, json.dumps(_plain(value), indent=1) + "\n")


def read_json(
    path: Path, kind: type = dict, *, keys: Mapping[str, Any] | None = None, missing: dict[str, Any] | None = None
) -> Any:
    """The JSON object (or `kind`, say list) in a file, `missing` where there is no file.

    keys: what `check_keys` is to find in it.
    Raises UserError, naming the file, where it holds something else, or is not there and nothing stands for it.
    """
    if missing is not None and not path.exists():
        return missing
    check(path)
    try:
        text = read_whole(path).decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unrepeated)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise UserError(f"{path}: expected a JSON {expected}, found {type(value).__name__}")
    if keys is not None:
        check_keys(value, keys, str(path))
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key that comes twice would silently count as its last value."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        raise ValueError(f"the key {next(key for key, _ in pairs if key in seen or seen.add(key))!r} comes twice")
    return value


def need_space(path: Path, size: int) -> None:
    """Raises UserError, before the work is done, where the disk of `path` has not this many bytes free."""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"{path} needs {size / 1e6:,.1f} MB, and its disk has {free / 1e6:,.1f} MB free: make room first"
        )


def write_array(path: Path, values: np.ndarray) -> None:
    """Writes a .npy file, whole or not at all."""
    write_blocks(path, [values], values.dtype, values.shape)


def write_blocks(path: Path, blocks: Iterable[np.ndarray], dtype: np.typing.DTypeLike, shape: tuple[int, ...]) -> None:
    """Writes a .npy file of this type and shape from blocks of its rows in their order, whole or not at all.

    It is written, not mapped: on a full disk that raises OSError, where writing to a mapped file would kill the process.
    Raises UserError, before it begins, where the disk has not the space.
    """
    dtype, rows = np.dtype(dtype), 0
    need_space(path, dtype.itemsize * math.prod(shape))
    with whole_file(path) as partial, partial.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
            rows += len(block)
        if rows != shape[0]:
            raise ValueError(f"{path}: {rows} rows written, expected {shape[0]}")


def read_array(path: str | Path, *, mapped: bool = False) -> np.ndarray:
    """The array of numbers in a .npy file; `mapped`: on disk and read-only, for files that are not read whole.

    Raises UserError, naming the file: missing, cut short, longer than the array, or no such array.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    check(path)
    try:
        with path.open("rb") as file:
            values = np.load(path if mapped else file, mmap_mode="r" if mapped else None, allow_pickle=False)
            end = values.offset + values.nbytes if isinstance(values, np.memmap) else file.tell()
    except Exception as error:  # a damaged header can fail in any part of its parser
        raise UserError(
            f"{path} is not a readable .npy file ({' '.join(str(error).split())}): copy it again"
        ) from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise UserError(f"{path} is an archive of arrays (.npz); give a file of one array (.npy)")
    if spare := path.stat().st_size - end:
        raise UserError(
            f"{path} has {spare} bytes more than its header says: it is damaged or holds several arrays; write it again"
        )
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path}: expected numbers, found {values.dtype}")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def same_job(
    path: Path, facts: Mapping[str, Any], *, free: Container[str] = (), later: Container[str] = (), advice: str
) -> bool:
    """True where `path` holds these facts (plain JSON) already; writes them where there is no such file (False).

    Args:
      free: keys that may differ from one run of a job to the next.
      later: keys that earlier versions did not write; a file without them is of the same job.
      advice: what to do about another job's facts, e.g. "use another --out, or delete it".

    Raises:
      UserError: the file holds another job's facts; every key that differs is named.
    """
    now = json.loads(json.dumps(_plain(dict(facts))))
    if not path.exists():
        write_json(path, now)
        return False
    before = read_json(path)
    refuse_other(str(path.parent), before, now, free=free, later=later, advice=advice)
    return True


def refuse_other(
    where: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    free: Container[str] = (),
    later: Container[str] = (),
    advice: str,
) -> None:
    """Raises UserError, naming every key that differs, where the facts of a job are others than before; see `same_job`."""
    differs = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in free and not (key in later and key not in before)
    ]
    if differs:
        raise UserError(f"{where}: was begun with other settings: {'; '.join(differs)}. {advice}")


def digest_of(*arrays: np.ndarray) -> str:
    """A hash of the shapes, types and values of arrays: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


@contextmanager
def lock(path: Path, home: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Holds what is to be written at `path` for this process alone.

    The locks lie in `home`/locks, so that nothing is left beside results and reading never needs one; a bucket has none.
    Raises UserError, naming the holder, when another process has it for longer than `wait_seconds`.
    """
    if is_remote(path):
        yield
        return
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:24]
    file = home / "locks" / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    holder = file.with_suffix(".json")
    try:
        with filelock.FileLock(file, timeout=wait_seconds):
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "path": str(path)}))
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)
    except filelock.Timeout as error:
        try:
            who = json.loads(holder.read_text())
            text = f"process {who['pid']} on {who['host']}"
        except (OSError, ValueError, KeyError):
            text = "another process"
        raise UserError(f"{path} is being written by {text}; wait until it has finished, or stop it") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and math.isnan(value) else value
