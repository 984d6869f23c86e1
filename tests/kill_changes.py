"""Kills changes of an index at every point where they touch the disk: kill_changes.py FOLDER

No child runs JAX: models are stubs, and bits are made already, so each life is a fork that takes milliseconds.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import stub_index

from ames_jax.index import changes, collection, first_stage, index_json
from ames_jax.index.parts import write_images
from ames_jax.model.packing import binarizer_fingerprint

MODEL = SimpleNamespace(tokenizer=SimpleNamespace(hyperplanes=np.ones((stub_index.WIDTH, stub_index.BITS), np.float32)))
PACKER = SimpleNamespace(
    bits=stub_index.BITS, fingerprint=binarizer_fingerprint(MODEL), pack=lambda descriptors, name: descriptors
)
collection.read_model = lambda _: MODEL
changes.BitPacker = lambda _: PACKER
BEFORE = {name: number for number, name in enumerate("abcdefgh")}


def build(path):
    path.mkdir()
    known = {"images": 0, "descriptors": stub_index.COUNT, "bits": stub_index.BITS, "budget": 6, "model": "stub"}
    known |= {"format": index_json.FORMAT, "lam": 0.5, "gamma": 0.1, "global_index": "Flat", "statistics": None}
    known |= {"global_width": stub_index.GLOBAL_WIDTH, "changes": 0, "removed": None, "files": {}, "parts": []}
    first_stage.write_empty(faiss.IndexFlatIP(stub_index.GLOBAL_WIDTH), path / "empty.faiss")
    for names in ("abcde", "fgh"):
        known = write_images(path, known, stub_index.packed({name: BEFORE[name] for name in names}), PACKER)
    index_json.publish(path, known)


def add(path):
    with changes.changing(path) as index:
        changes.change(index, [stub_index.packed({"x": 50, "y": 51})])


def remove(path):
    changes.remove_images(path, ["b"])


def replace(path):
    with changes.changing(path) as index:
        changes.change(index, [stub_index.packed({"a": 70, "z": 71})], index.rows(["a", "g"]))


def remove_many(path):
    changes.remove_images(path, ["b", "c", "g"])


CASES = {
    add: {**BEFORE, "x": 50, "y": 51},
    remove: {name: number for name, number in BEFORE.items() if name != "b"},
    replace: {**{name: number for name, number in BEFORE.items() if name not in "ag"}, "a": 70, "z": 71},
    remove_many: {name: number for name, number in BEFORE.items() if name not in "bcg"},
    changes.compact: BEFORE,
}


def state(path):
    """Id → number of what the index holds, which must be whole."""
    index = collection.SearchIndex.open(path)
    index.verify()
    return dict(zip(index.ids, stub_index.numbers_of(index.read(np.arange(len(index))).features)))


def in_child(function, *arguments):
    """Runs a function in a fork; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(operation, path, point):
    """Runs the operation, and dies before the `point`-th time that it touches the disk."""
    left = [point]

    def wrap(holder, name):
        original = getattr(holder, name)

        def function(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(holder, name, function)

    for holder, name in (
        (os, "replace"),
        (os, "rename"),
        (os, "fsync"),
        (os, "unlink"),
        (os, "rmdir"),
        (faiss, "write_index"),
    ):
        wrap(holder, name)
    operation(path)


def check(operation, path):
    """After a kill: the version before or after; and the operation, done now, leaves nothing else."""
    found, after = state(path), CASES[operation]
    assert found in (BEFORE, after), found
    if found != after or operation is changes.compact:
        operation(path)
    with changes.changing(path) as index:
        named = {part["folder"] for part in index.facts["parts"]} | {(index.facts["removed"] or {}).get("file")}
    assert state(path) == after
    there = {entry.name for entry in path.iterdir()}
    assert there == {"index.json", "empty.faiss", *named} - {None}, there


def main():
    folder = Path(sys.argv[1])
    os.environ["AMES_JAX_HOME"] = str(folder / "home")
    build(folder / "base")
    points = {}
    for operation in CASES:
        for point in range(200):
            path = folder / f"{operation.__name__}-{point}"
            shutil.copytree(folder / "base", path)
            status = in_child(killed_at, operation, path, point)
            if in_child(check, operation, path):
                return f"{operation.__name__} killed at point {point}: not whole"
            shutil.rmtree(path)
            if status != -signal.SIGKILL:
                break
        points[operation.__name__] = point
        if status:
            return f"{operation.__name__} failed by itself"
    print(json.dumps(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
