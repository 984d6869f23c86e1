"""Damaged files: whatever happens to a file that we read, the answer is right, or one line names what is wrong.

Each case damages one file of a kind by a seeded mutation and reads it again. Outcomes: right (the same answer), line (UserError
of one line), traceback (any other exception), unchecked (another answer, and a line on stderr that no checksum of the file is
recorded), silent (another answer without a word). `AMES_JAX_FUZZ=5000` does so many cases.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fuzz_kinds import KINDS, Kind

from ames_jax.runtime import checksums
from ames_jax.runtime.errors import UserError

CASES = int(os.environ.get("AMES_JAX_FUZZ", "600"))


def mutations(rng: np.random.Generator, content: bytes, name: str) -> bytes:
    """The content of a file, damaged in one of many ways."""
    data, size = bytearray(content), len(content)
    start, length = int(rng.integers(size)), int(rng.integers(1, 65))
    ways = ["bit", "bit", "bits", "cut", "zeros", "noise", "drop", "insert", "empty", "double"]
    way = str(rng.choice(ways + (["field"] * 8 if name.endswith(".json") else [])))
    if way == "field":
        return json.dumps(changed(rng, json.loads(content))).encode()
    if way in ("bit", "bits"):
        for place in rng.integers(size, size=1 if way == "bit" else 8):
            data[place] ^= 1 << int(rng.integers(8))
    elif way == "cut":
        data = data[:start]
    elif way in ("zeros", "noise"):
        piece = min(length, size - start)
        data[start : start + piece] = bytes(piece) if way == "zeros" else rng.bytes(piece)
    elif way == "drop":
        del data[start : start + length]
    elif way == "insert":
        data[start:start] = rng.bytes(length)
    else:
        data = bytearray() if way == "empty" else data + data
    return bytes(data)


def changed(rng: np.random.Generator, value: Any) -> Any:
    """JSON with one field dropped or of another type, somewhere in it."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        copy = value.copy()
        if rng.random() < 0.2:
            del copy[key]
        else:
            copy[key] = changed(rng, value[key])
        return copy
    others = (None, "text", "", -1, 0, 1e300, float("nan"), True, [], {}, [None], {"a": 1}, 2**70, 0.5, "../x")
    return others[int(rng.integers(len(others)))]


def digest(value: Any) -> str:
    """A hash of all in nested containers and arrays."""
    total = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key in part:
                add(key), add(part[key])
        elif isinstance(part, list | tuple):
            total.update(str(len(part)).encode())
            for inner in part:
                add(inner)
        elif isinstance(part, np.ndarray):
            total.update(repr((part.shape, part.dtype.str)).encode() + np.ascontiguousarray(part).tobytes())
        else:
            total.update(repr(part).encode())

    add(value)
    return total.hexdigest()


def outcome(kind: Kind, folder: Path, name: str, expected: str) -> str:
    checksums._noted.clear()
    try:
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            found = digest(kind.read(folder))
    except UserError as error:
        return "line" if "\n" not in str(error) else f"traceback: a line break in {str(error)!r}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    if found == expected:
        return "right"
    told = {Path(line.partition(": no checksum of")[0]) for line in printed.getvalue().splitlines()}
    return "unchecked" if told.intersection((folder / name).parents) else "silent"


def cases(folder: Path, make: Callable[[Path], Kind], count: int, recorded: bool) -> Iterator[tuple[str, str]]:
    """The file and the outcome of every case of a kind."""
    folder.mkdir()
    kind = make(folder)
    expected = digest(kind.read(folder))
    for name in kind.files:
        path = folder / name
        if recorded and not kind.always_recorded:
            checksums.record(path.parent, path.name)
    if not recorded and not kind.always_recorded:
        for path in folder.rglob(checksums.CHECKSUMS):
            path.unlink()
    assert digest(kind.read(folder)) == expected
    for case in range(-(-count // kind.cost)):
        name = kind.files[case % len(kind.files)]
        rng = np.random.default_rng([case, KINDS.index(make), recorded])
        whole = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(mutations(rng, whole, name))
            yield f"{name} (case {case})", outcome(kind, folder, name, expected)
        finally:
            (folder / name).write_bytes(whole)  # also where a damaged one was made again
            shutil.rmtree(folder / "copies", ignore_errors=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves what it had begun to read
@pytest.mark.parametrize("recorded", [True, False], ids=["with checksums", "without checksums"])
@pytest.mark.parametrize("make", KINDS)
def test_damage_is_never_silent_and_never_a_traceback(tmp_path, make, recorded, monkeypatch, capsys):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    found = dict(cases(tmp_path / "files", make, CASES // (2 * len(KINDS)), recorded))
    gc.collect()
    counts = collections.Counter(result.partition(":")[0] for result in found.values())
    with capsys.disabled():
        print(f"\n{make.__name__} {'with' if recorded else 'without'} checksums: {dict(counts)}")
    wrong = ("traceback", "silent", "unchecked") if recorded else ("traceback", "silent")
    assert {name: result for name, result in found.items() if result.startswith(wrong)} == {}
