"""index.json, the one file that says what a search index holds: read with all its fields checked, replaced in one step; and
the sizes and checksums of the other files, which it keeps."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ames_jax.runtime import checksums
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json, whole_file
from ames_jax.runtime.schema import Between, check_keys

FORMAT, VERSION, READ = "ames_jax search index", 2, (1, 2)
FACTS, MODEL, EMPTY, GLOBAL, STAMPS = "index.json", "model", "empty.faiss", "global.faiss", "pictures.npy"
AGAIN = "build the index again, or copy it again in full"

# What index.json holds; see `check_keys`.
FILE = {"bytes": int, "crc32": int, "head?": int}
FILES = {re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)?"): FILE}
PLACE, RUN = {"folder": str, "suffix": str}, {"images": int, "folder?": str | None, "suffix?": str | None}
OF_PART = {
    "folder": re.compile(r"part-\d+"),
    "images": int,
    "source": str,
    "pictures": (PLACE, [RUN, ...], None),
    "global_bytes": int,
}
OF_INDEX = {
    "images": int,
    "descriptors": int,
    "bits": range(8, 2**20, 8),
    "budget": int,
    "model": str,
    "lam": Between(0, 1),
    "gamma": Between(0, 1e9),
    "global_index": str,
    "global_width": int,
    "query_descriptors": int,
    "shortlist": int,
    "sure_logit": (Between(0, 1e9), None),
    "statistics": str | None,
    "parts": [OF_PART, ...],
}
# Keys that indexes of earlier versions go without, and their values.
LATER = {"query_descriptors": 100, "shortlist": 100, "sure_logit": None}
# What version 2 adds: the number of changes so far, rows that were removed, checksums.
REMOVED = {"file": re.compile(r"removed-\d+\.npy"), "images": int, **FILE}
SINCE_2 = {"changes": int, "files": FILES, "removed": (REMOVED, None), "parts": [{**OF_PART, "files": FILES}, ...]}


def read_facts(path: Path) -> dict[str, Any]:
    """The content of index.json of the index at `path`.

    Raises UserError, naming the file, where it is missing, of another version or damaged: its checksum is wrong, or a field is
    missing or of another type.
    """
    file = path / FACTS
    if not file.is_file():
        raise UserError(
            f"{path} is not a search index: it has no {FACTS}; make one with python -m ames_jax.search index"
        )
    facts = read_json(file)
    if facts.get("format") != FORMAT or facts.get("version") not in READ or type(facts.get("version")) is not int:
        raise UserError(
            f"{file}: {facts.get('format')!r} version {facts.get('version')}, this program reads {FORMAT!r} versions "
            f"{READ[0]} to {READ[-1]}; build the index again"
        )
    if facts["version"] > 1 and facts.pop("crc32", None) != checksums.json_checksum(facts):
        raise UserError(f"{file} is damaged: its checksum is wrong; {AGAIN}")
    facts = {**LATER, **facts}
    check_keys(facts, OF_INDEX if facts["version"] == 1 else OF_INDEX | SINCE_2, str(file), AGAIN)
    return {"changes": len(facts["parts"]), "removed": None, "files": {}, **facts}


def publish(path: Path, facts: Mapping[str, Any]) -> None:
    """Replaces index.json: from now on the index is what `facts` say."""
    facts = {**facts, "version": VERSION}
    with whole_file(path / FACTS) as partial:
        partial.write_text(json.dumps({**facts, "crc32": checksums.json_checksum(facts)}, indent=1), encoding="utf-8")
        sync(partial)
    if os.name != "nt":
        _sync_entry(path)  # the new name of the file


def recorded(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Size and checksum of files in a folder, as index.json keeps them; of large ones, `head`, that of their beginning.

    There FAISS keeps the sizes by which it takes memory. The whole of them is what `verify` is for.
    """
    found = {}
    for file in map(folder.joinpath, names):
        facts = checksums.facts_of(file)
        head = {"head": checksums.checksum_of_head(file)} if facts["bytes"] > checksums.READ_ON_OPENING else {}
        found[file.relative_to(folder).as_posix()] = facts | head
    return found


def check_files(folder: Path, files: Mapping[str, Mapping[str, int]], *, whole: bool = False) -> None:
    """Compares files with their recorded sizes, and small ones, or all of them, with their checksums; of others the beginning.

    Raises UserError, naming the first file that is missing, cut short or damaged.
    """
    for name, known in files.items():
        checksums.compare(folder / name, known, AGAIN, read=whole or None)


def note_without_checksums(path: Path, facts: Mapping[str, Any]) -> None:
    """One line on stderr about an index of an earlier version, in which damage goes unnoticed."""
    if facts["version"] == 1:
        advice = f"python -m ames_jax.search compact --index={path} adds them"
        print(f"{path}: written by an earlier version, without checksums of its files; {advice}", file=sys.stderr)


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all in it, is on the disk, so that a power failure cannot lose what is
    published after."""
    for entry in [*path.rglob("*"), path]:
        if not (entry.is_dir() and os.name == "nt"):  # Windows has no handles of folders
            _sync_entry(entry)


def _sync_entry(entry: Path) -> None:
    handle = os.open(entry, os.O_RDONLY if entry.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
