"""Gives a command again on every state of its files that a kill can leave: every_write_job.py FOLDER COMMAND…

LD_PRELOAD=stop_at_writes.so stops the command before each write and in its middle; at each stop its files are copied: a kill
there would have left just these. Everything is imported once; each run is a fork from here.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import h5py
import numpy as np
import tensorflow_datasets  # noqa: F401 (imported before the forks, not in each of them)

from ames_jax import prepare, search
from ames_jax.data import release_hdf5, shard_writing  # noqa: F401
from ames_jax.runtime.errors import run_main


def release_files(folder):
    with h5py.File(folder / "local.hdf5", "w") as file:
        file["features"] = np.float32([1, 1, 1, 0, *[1] * 5]) * np.ones((5, 2, 1), np.float32)
    (folder / "list.txt").write_text("".join(f"{row}.jpg,{row % 2},640,480\n" for row in range(5)))
    values = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    np.save(folder / "global.npy", values / np.linalg.norm(values, axis=1, keepdims=True))


def pictures(folder):
    import photo_folder

    photo_folder.write_pictures(folder / "photos", range(2), scenes=2)
    photo_folder.write_pictures(folder / "more", range(2, 4), scenes=2)
    statistics = photo_folder.write_statistics(folder / "sift.npz")
    photo_folder.write_model(folder / "model", statistics)
    for name in ("photos", "more"):
        photo_folder.extract(folder / name, folder / f"{name}.set", statistics)
    search.main(
        ["index", f"--descriptors={folder / 'photos.set'}", f"--model={folder / 'model'}", f"--out={folder / 'index'}"]
    )


# Name → what it needs, made once; the folder its output starts from; the door and the flags.
COMMANDS = {
    "shards": (
        *(release_files, None, prepare),
        "shards --root=OUT --name=x --split=train --features=local.hdf5 --list=list.txt --backbone=x --shards=2 --processes=1",
    ),
    "neighbours": (release_files, None, prepare, "neighbours --queries=global.npy --k=3 --block=6 --out=OUT"),
    "store": (pictures, None, prepare, "store --features=photos.set --split=images --model=model --out=OUT/x.store"),
    "index": (pictures, None, search, "index --descriptors=photos.set --model=model --out=OUT/index"),
    "add": (pictures, "index", search, "index --add --descriptors=more.set --out=OUT"),
    "remove": (pictures, "index", search, "remove --index=OUT --ids=scene0/1.jpg"),
}


def started(command, out, stopping):
    """A process that gives the command; `stopping`: at each of its writes."""
    _, _, door, text = COMMANDS[command]
    child = os.fork()
    if child == 0:
        try:
            if stopping:
                ctypes.CDLL(None).stop_under(str(out).encode())
            run_main(lambda: door.main(text.replace("OUT", str(out)).split()))
        except SystemExit as ended:
            os._exit(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def tree(out):
    """Path → content of every file, None of a folder."""
    return {path.relative_to(out): path.read_bytes() if path.is_file() else None for path in sorted(out.rglob("*"))}


def put(state, out):
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path, content in state.items():
        (out / path).mkdir() if content is None else (out / path).write_bytes(content)


def check(command, folder):
    """The number of states; asserts that the command ends well on each of them, with the bytes of an unbroken run."""
    out, begin = folder / "out", COMMANDS[command][1]
    first = tree(folder / begin) if begin else {}
    put(first, out)
    child, states = started(command, out, True), [first]
    while os.WIFSTOPPED(status := os.waitpid(child, os.WUNTRACED)[1]):
        states.append(tree(out))
        os.kill(child, signal.SIGCONT)
    assert status == 0, f"{command} failed"
    expected = tree(out)
    _, again = os.waitpid(started(command, out, False), 0)  # of a change that is done: there is nothing left to do
    distinct = [state for row, state in enumerate(states) if state not in states[:row] and state != expected]
    for number, state in enumerate(distinct):
        put(state, out)
        _, status = os.waitpid(started(command, out, False), 0)
        wrong = [str(path) for path in {**expected, **tree(out)} if expected.get(path, 0) != tree(out).get(path, 0)]
        assert (status in (0, again), wrong) == (True, []), f"{command}, state {number} of {len(distinct)}: {status}"
    return len(distinct)


def main():
    folder = Path(sys.argv[1])
    os.chdir(folder)
    for make in dict.fromkeys(COMMANDS[command][0] for command in sys.argv[2:]):
        child = os.fork()  # JAX starts its threads there, not here
        if child == 0:
            make(folder)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    print(json.dumps({command: check(command, folder) for command in sys.argv[2:]}))


if __name__ == "__main__":
    main()
