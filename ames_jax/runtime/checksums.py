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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ames_jax.runtime.errors import UserError

CHECKSUMS = "CHECKSUMS"
BLOCK_BYTES = 1 << 22
# Files up to this size are compared whole on opening; of larger ones the size, and the rest by `prepare validate`.
READ_ON_OPENING = 32 << 20
# Folders about which a line was printed, or none is wanted.
_noted: set[Path] = set()


def checksum(path: Path) -> int:
    """CRC-32 of a file, read in blocks."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value


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
    facts = {name: {"bytes": (folder / name).stat().st_size, "crc32": checksum(folder / name)} for name in names}
    _replace(folder, {**entries(folder), **facts})


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
    if "://" in os.fspath(folder):
        return {}
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes() if path.is_file() else b"")
        if content["crc32"] == _crc32(content["files"]):
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
    size = path.stat().st_size
    if size != known["bytes"]:
        raise UserError(
            f"{path} has {size} bytes, expected {known['bytes']}: it was cut short or changed; {_advice(path)}"
        )
    if (whole or size <= READ_ON_OPENING) and checksum(path) != known["crc32"]:
        raise UserError(f"{path}: its checksum is wrong: it is damaged or was changed; {_advice(path)}")


def note_unchecked(path: Path) -> None:
    """One line on stderr where no checksum of a file is recorded: once per folder, and for the folders below it.

    Processes that share the work leave it to the one that started them. Of a bucket nothing is said.
    """
    if "://" in os.fspath(path) or multiprocessing.parent_process() or _noted.intersection(path.parents):
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


def _advice(path: Path) -> str:
    return f"write or copy it again, or delete its entry in {CHECKSUMS} if it was changed on purpose"


def _replace(folder: Path, facts: dict[str, dict[str, int]]) -> None:
    ordered = dict(sorted(facts.items()))
    partial = folder / f".{CHECKSUMS}.partial"
    partial.write_text(json.dumps({"files": ordered, "crc32": _crc32(ordered)}, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / CHECKSUMS)


def _crc32(facts: dict[str, dict[str, int]]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
