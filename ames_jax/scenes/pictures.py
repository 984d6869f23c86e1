"""Files of photographs and of their views, written by working processes; without JAX, so that these start fast."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from ames_jax.extraction.images import load_image, resize, shrink
from ames_jax.runtime.cores import end_with_parent
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file
from ames_jax.runtime.progress import Progress
from ames_jax.scenes.warping import warp

QUALITY = 95  # of the JPEG files that hold photos at the size of views
CELL, GAP, SHEET_QUALITY = (
    (128, 144),
    6,
    85,
)  # height and width of a picture on a sheet, what is left free, JPEG quality
CACHED = 32  # decoded photos that a working process keeps


def write_photo(source: Path, side: int, target: Path) -> None:
    """Writes a photo with its longer side at most `side`; of one that cannot be read, why, with the suffix .broken."""
    try:
        picture = shrink(load_image(source), side)
    except UserError as error:
        write_file(target.with_suffix(".broken"), str(error))
        return
    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    write_file(target, encoded.tobytes())


def write_views(
    photo: Path, views: Sequence[tuple[int, Path]], others: Sequence[Path], key: Sequence[int], strength: float
) -> None:
    """Writes warped views of a photo, each whole or not at all.

    Args:
      photo: its file.
      views: number and file of each view.
      others: files of the photos that lend backgrounds.
      key: with a view's number, decides all that is random in it.
      strength: see `warping.warp`.
    """

    def other(random: np.random.Generator) -> np.ndarray:
        return _decoded(others[int(random.integers(len(others)))])

    pixels = _decoded(photo)
    for number, file in views:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, number])))
        write_file(file, warp(pixels, other, random, max(pixels.shape[:2]), strength))


def write_sheet(target: Path, rows: Sequence[Sequence[Path]]) -> None:
    """Draws a row of small pictures for each row of files, as JPEG."""
    sheet = np.full((len(rows) * CELL[0], max(map(len, rows)) * CELL[1], 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, file in enumerate(row):
            picture = load_image(file)
            share = min((side - GAP) / own for side, own in zip(CELL, picture.shape))
            height, width = (max(1, round(share * own)) for own in picture.shape[:2])
            top, left = i * CELL[0] + (CELL[0] - height) // 2, j * CELL[1] + (CELL[1] - width) // 2
            sheet[top : top + height, left : left + width] = resize(picture, height, width)
    encoded = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, SHEET_QUALITY])[1]
    write_file(target, encoded.tobytes())


@functools.lru_cache(maxsize=CACHED)
def _decoded(file: Path) -> np.ndarray:
    return load_image(file)


def run_all(
    calls: Sequence[Callable[[], object]], processes: int, label: str, total: int, unit: str = "photographs"
) -> None:
    """Makes all the calls, which can be pickled, in working processes; progress counts towards `total` units."""
    with Progress(label, total, unit, done=total - len(calls)) as progress:
        if min(processes, len(calls)) <= 1:
            for call in progress.over(calls):
                call()
            return
        # Spawned, not forked: JAX may already run threads in this process.
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _prepare_worker)
        try:
            for _ in progress.over(pool.map(_call, calls)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _call(call: Callable[[], object]) -> None:
    call()


def _prepare_worker() -> None:
    cv2.setNumThreads(1)  # every worker has a core
    end_with_parent()
