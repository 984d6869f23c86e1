"""Sizes and checksums of files, kept beside them in `CHECKSUMS`: written with them, compared when they are opened.

    {"files": {"ids.txt": {"bytes": 120, "crc32": 305419896}, …}, "crc32": of the text of `files`}

A file that has no entry is taken as it is: one of an earlier version, of another program, or in the middle of a change. The
readers of files that have no checksums of their own say so (`note_unchecked`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.paths import is_remote

CHECKSUMS = "CHECKSUMS"
BLOCK_BYTES = 1 << 22
# Files up to this size are compared whole on opening; of larger ones the size, and the rest by `prepare validate`.
READ_ON_OPENING = 32 << 20
HEAD = 1 << 20
MOST = 1 << 30  # bytes of `CHECKSUMS`
# Folders about which a line was printed, or none is wanted.
_noted: set[Path] = set()


def checksum(path: Path) -> int:
    """CRC-32 of a file, read in blocks."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value


def checksum_of_head(path: Path) -> int:
    """CRC-32 of the first `HEAD` bytes of a file."""
    with path.open("rb") as stream:
        return zlib.crc32(stream.read(HEAD))


def json_checksum(value: Any) -> int:
    """CRC-32 of plain values as the text that they are written as."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def facts_of(path: Path) -> dict[str, int]:
    """The size and the checksum of a file."""
    return {"bytes": path.stat().st_size, "crc32": checksum(path)}


def compare(path: Path, known: Mapping[str, int], advice: str, *, read: bool | None = None) -> None:
    """Compares a file with what is known of it: `bytes`, `crc32` and, of a large one, `head`.

    read: all of it, or nothing but its size; None: a small one, and of others the beginning where its checksum is known.
    Raises UserError, naming the file, where it is missing, cut short, or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {advice}")
    size = path.stat().st_size
    if size != known["bytes"]:
        raise UserError(f"{path} has {size} bytes, expected {known['bytes']}: it was cut short or changed; {advice}")
    if read is False:
        return
    read = read or size <= READ_ON_OPENING
    expected = known["crc32"] if read else known.get("head")  # which earlier versions did not keep
    if expected is not None and (checksum if read else checksum_of_head)(path) != expected:
        raise UserError(f"{path} is damaged: its checksum is wrong; {advice}")


@contextmanager
def recorded(folder: Path, *names: str) -> Iterator[None]:
    """In this block these files of a folder are written; at its end their sizes and checksums are kept.

    A process that is killed in between leaves no entries, never wrong ones.
    """
    forget(folder, *names)
    yield
    record(folder, *names)


def record(folder: Path, *names: str) -> None:
    """Keeps the sizes and checksums of these files of a folder."""
    if not names:
        return
    _replace(folder, {**entries(folder), **{name: facts_of(folder / name) for name in names}})


def forget(folder: Path, *names: str) -> None:
    """Drops the entries of files that are about to change."""
    before = entries(folder)
    if before.keys() & set(names):
        _replace(folder, {name: facts for name, facts in before.items() if name not in names})


def entries(folder: Path) -> dict[str, dict[str, int]]:
    """Name → bytes and crc32 of the files of a folder that are known, none of a bucket's.

    Raises UserError where `CHECKSUMS` is damaged.
    """
    path = folder / CHECKSUMS
    if is_remote(folder) or not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes() if path.is_file() and path.stat().st_size <= MOST else b"")
        if content["crc32"] == json_checksum(content["files"]):
            return content["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path} is damaged: copy it again, or delete it to open the files beside it unchecked")


def check(path: Path, *, whole: bool = False) -> None:
    """Compares a file with its entry: the size, and the checksum of a small one, or of any (`whole`).

    Raises UserError, naming the file, where it is cut short, damaged, or was changed by another program; and for a folder,
    device or pipe in its place, of which some would be waited for without end.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder, a device or a pipe; expected a file: write or copy it again")
    known = entries(path.parent).get(path.name)
    if known is None or not path.is_file():  # whoever reads a file says that it is missing
        return
    advice = f"write or copy it again, or delete its entry in {CHECKSUMS} if it was changed on purpose"
    compare(path, known, advice, read=whole or None)


def note_unchecked(path: Path) -> None:
    """One line on stderr where no checksum of a file is recorded: once per folder, and for the folders below it.

    Processes that share the work leave it to the one that started them. Of a bucket nothing is said.
    """
    if is_remote(path) or multiprocessing.parent_process() or _noted.intersection(path.parents):
        return
    if path.name in entries(path.parent):
        return
    _noted.add(path.parent)
    advice = "python -m ames_jax.prepare validate FILE … --record keeps them"
    print(
        f"{path.parent}: no checksum of {path.name} is recorded, so damage there may go unnoticed; {advice}",
        file=sys.stderr,
    )


def expect_unchecked(paths: Iterable[Path]) -> None:
    """Nothing is printed about these files and folders, nor about what lies beside and below them."""
    _noted.update(path.parent for path in paths)


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON beside a checksum of it: for a file that is kept only until a job is done."""
    return {"facts": facts, "crc32": json_checksum(facts)}


def unsealed(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """The facts that `sealed` was given, or a file of an earlier version as it is; raises UserError where it is damaged."""
    if value.keys() & {"facts", "crc32"} and json_checksum(value.get("facts")) != value.get("crc32"):
        raise UserError(f"{path}: its checksum is wrong: it is damaged; delete it, and give the same command again")
    return value.get("facts", value)


def _replace(folder: Path, facts: dict[str, dict[str, int]]) -> None:
    ordered = dict(sorted(facts.items()))
    partial = folder / f".{CHECKSUMS}.partial"
    partial.write_text(
        json.dumps({"files": ordered, "crc32": json_checksum(ordered)}, indent=1) + "\n", encoding="utf-8"
    )
    os.replace(partial, folder / CHECKSUMS)
