"""Renders landmarks and detects their keypoints, one landmark a task, in worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ames_jax.extraction.keypoints import SIFT_WIDTH, detect
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.scenes.scene import World, world
from ames_jax.scenes.settings import Settings


@dataclass(frozen=True)
class Task:
    """Views first..first + views of one landmark; photo j is written to paths[j] where paths are given.

    open_world: from the settings to the world that draws it, a function that worker processes can import.
    """

    settings: Settings
    landmark: int
    first: int
    views: int
    paths: tuple[Path, ...] = ()
    open_world: Callable[[Settings], World] = world


@dataclass(frozen=True)
class Views:
    """Keypoints of V photos, padded: histogram uint8 [V, K, 128], count [V], xy [V, K, 2], scale and weight [V, K]."""

    histogram: np.ndarray
    count: np.ndarray
    xy: np.ndarray
    scale: np.ndarray
    weight: np.ndarray

    @classmethod
    def empty(cls, views: int, descriptors: int) -> Views:
        shape = views, descriptors
        return cls(
            np.zeros((*shape, SIFT_WIDTH), np.uint8),
            np.zeros(views, np.int64),
            np.zeros((*shape, 2), np.float32),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
        )

    @classmethod
    def join(cls, parts: list[Views]) -> Views:
        fields = ("histogram", "count", "xy", "scale", "weight")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def render_photo(settings: Settings, landmark: int, view: int) -> bytes:
    """The JPEG file of one photo, also of the training photos that no file is kept of."""
    scene = world(settings)
    return scene.photograph(landmark, view, scene.landmark(landmark))


def run_task(task: Task) -> Views:
    """Renders, writes and describes the photos of a task: a pure function of it."""
    scene = task.open_world(task.settings)
    landmark = scene.landmark(task.landmark)
    views = Views.empty(task.views, task.settings.detected)
    for j in range(task.views):
        jpeg = scene.photograph(task.landmark, task.first + j, landmark)
        if task.paths:
            task.paths[j].write_bytes(jpeg)
        # Detection runs on the compressed photo: extracting from the stored file gives the same descriptors.
        gray = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        found = detect(gray, task.settings.detected, task.settings.spread)
        views.count[j] = len(found)
        for name in ("histogram", "xy", "scale", "weight"):
            getattr(views, name)[j, : len(found)] = getattr(found, name)
    return views


def run_tasks(tasks: list[Task], processes: int | None) -> Iterator[Views]:
    """Results in the order of the tasks.

    Raises:
      UserError: when the worker processes die (out of memory, or a script without a main guard).
    """
    processes = min(processes or usable_cores(), len(tasks))
    if processes <= 1:
        yield from map(run_task, tasks)
        return
    # Spawned, not forked: JAX may already run threads in this process.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _use_one_thread)
    try:
        yield from pool.map(run_task, tasks, chunksize=2)
    except BrokenProcessPool as error:
        raise UserError(
            "the processes that render the embedded landmarks died: out of memory, or started from a script without "
            "`if __name__ == '__main__':`; build once with `python -m ames_jax.scenes.landmarks`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    """Each worker has a core: OpenCV's own threads would only get in the way."""
    cv2.setNumThreads(1)
