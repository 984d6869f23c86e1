"""Renders landmarks and detects their keypoints, one landmark per task; working processes for this and for views of photos."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from ames_jax.extraction.keypoints import Keypoints, detect
from ames_jax.runtime.cores import end_with_parent, usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file
from ames_jax.scenes.settings import Settings
from ames_jax.scenes.transfer_world import TransferWorld
from ames_jax.scenes.world import World

Result = TypeVar("Result")


@dataclass(frozen=True)
class Task:
    """Views first..first + views of one landmark; photo j is written to paths[j] where paths are given."""

    settings: Settings
    landmark: int
    first: int
    views: int
    paths: tuple[Path, ...] = ()


@lru_cache(maxsize=1)
def world(settings: Settings) -> World:
    """The world of these settings, built on first use in each process."""
    return (TransferWorld if settings.folder == "transfer" else World)(settings)


def run_task(task: Task) -> list[Keypoints]:
    """Renders, writes and describes the photos of a task: a pure function of it."""
    scene, found = world(task.settings), []
    landmark = scene.landmark(task.landmark)
    for j in range(task.views):
        jpeg = scene.photograph(task.landmark, task.first + j, landmark)
        if task.paths:
            write_file(task.paths[j], jpeg)
        # Detection runs on the compressed photo: extracting from the stored file gives the same descriptors.
        gray = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        found.append(detect(gray, task.settings.detected, task.settings.spread))
    return found


def run_calls(calls: Sequence[Callable[[], Result]], processes: int | None, what: str) -> Iterator[Result]:
    """Results of all the calls, which can be pickled, in their order, from so many working processes (None: one per core).

    Raises:
      UserError: the processes that make `what` died (out of memory, or a script without a main guard).
    """
    processes = min(processes or usable_cores(), len(calls))
    if processes <= 1:
        yield from map(_call, calls)
        return
    # Spawned, not forked: JAX may already run threads in this process. Each worker has a core, so OpenCV's own threads
    # would only get in the way.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(_call, calls)
    except BrokenProcessPool as error:
        raise UserError(
            f"the processes that make the {what} died: out of memory, or started from a script without "
            "`if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _call(call: Callable[[], Result]) -> Result:
    return call()


def _start_worker() -> None:
    cv2.setNumThreads(1)
    end_with_parent()


def write_contact_sheet(path: Path, settings: Settings, landmarks: int = 8, views: int = 6) -> None:
    """Draws the first landmarks, one row of views each, at 192 × 144 pixels per photo.

    Raises UserError, naming the file, where it cannot be written.
    """
    scene, rows = world(settings), []
    for number in range(landmarks):
        landmark = scene.landmark(number)
        jpegs = [scene.photograph(number, view, landmark) for view in range(views)]
        photos = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in jpegs]
        rows.append(np.hstack([cv2.resize(photo, (192, 144), interpolation=cv2.INTER_AREA) for photo in photos]))
    try:
        written = cv2.imwrite(str(path), np.vstack(rows))
    except cv2.error as error:
        raise UserError(f"{path}: cannot write a picture: {error.err}") from error
    if not written:
        raise UserError(f"{path}: cannot be written; does its folder exist?")
