"""Checks of text lists, neighbour lists and ground truth, alone and against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ames_jax.data.checks.reports import Faults, Report
from ames_jax.data.lists import ImageList
from ames_jax.data.neighbours import Neighbours
from ames_jax.data.release_pickles import EXACT_FLOAT32
from ames_jax.runtime.progress import Progress

# Values looked at without --full, and rows at once.
SAMPLE_VALUES, BLOCK_ROWS = 10**8, 4096
# How many of the first neighbours' labels are looked at, and how often chance they must agree at least.
NEAR, ABOVE_CHANCE = 10, 2.0
AGAIN = "make the lists again with `prepare neighbours`"
NEIGHBOUR_FAULTS = {
    "outside": f"name images outside of the {{}} there are: {AGAIN}, or give the files they belong to",
    "fraction": f"hold indices that are not whole numbers: {AGAIN}",
    "strange": f"hold similarities that are NaN or infinity: {AGAIN}",
    "rising": f"are not sorted by falling similarity: {AGAIN}",
    "own": f"hold the image itself: take it out, or {AGAIN} (training skips it)",
}


def check_text_list(path: Path, images: ImageList, report: Report) -> None:
    """An id that comes twice."""
    labels = "no labels" if images.labels is None else f"{len(np.unique(images.labels))} labels"
    report.line(f"{path}: list of {len(images)} images, {labels}")
    _, first, counts = np.unique(np.array(images.ids), return_index=True, return_counts=True)
    if (counts > 1).any():
        twice = int(first[counts > 1].min())
        report.problem(path, f"{images.ids[twice]!r} (line {twice + 1}) comes more than once: remove the repeats")


def check_neighbours(
    path: Path,
    lists: Neighbours,
    report: Report,
    *,
    queries: int | None,
    database: int | None,
    itself: bool,
    full: bool,
) -> None:
    """Shape, range, order, and lists that hold the image they are of (`itself`: queries and database are the same set)."""
    indices, (count, wide) = lists.indices, lists.indices.shape
    rows = np.arange(count)
    if not full and indices.size > SAMPLE_VALUES:
        rows = np.unique(np.linspace(0, count - 1, SAMPLE_VALUES // wide).astype(int))
    sampled = "" if len(rows) == count else f"; sampled {len(rows)} queries, --full reads all"
    report.line(f"{path}: {wide} neighbours of {count} images, {indices.dtype} indices{sampled}")
    if queries is not None and count != queries:
        report.problem(path, f"lists of {count} images, but there are {queries}: they are of another set")
    faults, end = Faults(), np.inf if database is None else database
    with Progress(f"checking {path.name}", len(rows), "lists") as progress:
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            index, value = np.asarray(indices[block], np.float64), np.asarray(lists.similarities[block], np.float32)
            with np.errstate(invalid="ignore"):
                faults.add("outside", block, ((index < 0) | (index >= end)).any(axis=1))
                faults.add("fraction", block, ~(index == np.floor(index)).all(axis=1))
                faults.add("rising", block, (np.diff(value, axis=1) > 0).any(axis=1))
            faults.add("strange", block, ~np.isfinite(value).all(axis=1))
            if itself:
                faults.add("own", block, (index == block[:, None]).any(axis=1))
            progress.update(len(block))
    advice = {kind: text.format(database) for kind, text in NEIGHBOUR_FAULTS.items()}
    faults.tell(report, path, advice, "the lists of {} images")
    if database is not None and database > EXACT_FLOAT32 and indices.dtype == np.float32:
        report.problem(path, f"float32 cannot number {database} images: {AGAIN}")


def check_label_agreement(list_path: Path, path: Path, labels: np.ndarray, indices: np.ndarray, report: Report) -> None:
    """A list in another order than the neighbours: then neighbours share labels no more often than chance."""
    rows = np.unique(np.linspace(0, len(indices) - 1, 20_000).astype(int))
    near = np.asarray(indices[rows, :NEAR], np.float64)
    known = (near >= 0) & (near < len(labels)) & (near != rows[:, None]) & np.isfinite(near)
    near = np.where(known, near, 0).astype(np.int64)
    share = float((labels[near] == labels[rows][:, None])[known].mean()) if known.any() else 0.0
    chance = float(((np.unique(labels, return_counts=True)[1] / len(labels)) ** 2).sum())
    report.line(
        f"{list_path}: {100 * share:.2f} % of the nearest {NEAR} neighbours share the label; chance {100 * chance:.2f} %"
    )
    if share < ABOVE_CHANCE * chance:
        report.problem(
            list_path,
            f"labels of neighbours in {path} agree in {100 * share:.2f} % of cases, as by chance ({100 * chance:.2f} %): the "
            "list is in the wrong order; give the list that the descriptors were extracted from",
        )


def check_list_order(path: Path, images: ImageList, truth_path: Path, ids: Sequence[str], report: Report) -> None:
    """A list in another order than the ids of a ground truth (compared without folders and endings)."""
    listed = [PurePosixPath(name).stem for name in images.ids]
    expected = [PurePosixPath(name).stem for name in ids]
    if listed == expected:
        return
    if sorted(listed) != sorted(expected):
        report.problem(path, f"does not list the images of {truth_path}: give the list of the same data set")
        return
    row = next(i for i, pair in enumerate(zip(listed, expected)) if pair[0] != pair[1])
    report.problem(
        path,
        f"line {row + 1} is {images.ids[row]!r}, but image {row} of {truth_path} is {ids[row]!r}: the list is in the wrong "
        "order; give the list that the descriptors were extracted from",
    )


def check_ground_truth(
    path: Path, truth: Sequence[Mapping[str, list]], report: Report, *, queries: int | None, database: int | None
) -> None:
    """Count of queries, and rows out of range."""
    kinds = [{kind: rows for kind, rows in entry.items() if kind != "bbx"} for entry in truth]
    without = sum(1 for entry in kinds if not any(rows for kind, rows in entry.items() if kind != "junk"))
    report.line(f"{path}: ground truth of {len(truth)} queries, {without} of them without a right image")
    if queries is not None and len(truth) != queries:
        report.problem(path, f"{len(truth)} queries, but there are {queries}: it is of another set")
    end = np.inf if database is None else database
    for i, entry in enumerate(kinds):
        for kind, rows in entry.items():
            if not isinstance(rows, list) or not all(type(row) is int for row in rows):
                report.problem(path, f"query {i}: {kind} is no list of rows: copy it again")
                return
            outside = [row for row in rows if not 0 <= row < end]
            if outside:
                report.problem(
                    path, f"query {i} names image {outside[0]} ({kind}) of {database}: it is of another set, or damaged"
                )
                return
