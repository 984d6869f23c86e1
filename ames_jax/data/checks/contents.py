"""Checks of what one file holds: descriptors, lists of images, neighbour lists, ground truth; of large files in samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ames_jax.data.checks.reports import Faults, Report
from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.lists import ImageList
from ames_jax.data.neighbours import Neighbours
from ames_jax.data.release_hdf5 import MASK, WEIGHT, ReleaseSource
from ames_jax.data.release_pickles import EXACT_FLOAT32
from ames_jax.runtime.progress import Progress

# Without --full, of files that take more than WHOLE_BYTES to look at: so many runs of so many images, evenly spread.
SAMPLE_RUNS, SAMPLE_RUN = 128, 16
WHOLE_BYTES = 4 * 2**30
BLOCK_BYTES = 64 * 2**20
# Of neighbour lists, values looked at without --full, and rows at once.
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


class LocalBlock:
    """Some images of a file of local descriptors: features [n, K, ·] and metadata [n, K, 5], and what follows from them."""

    def __init__(self, metadata: np.ndarray, features: np.ndarray, packed: bool) -> None:
        self.mask, self.weight = metadata[..., MASK], metadata[..., WEIGHT]
        self.real = self.mask == 0
        if packed:  # bits may all be zero
            self.norms = np.ones(self.real.shape, np.float32)
            nothing = ~features.any(axis=2)
        else:
            features = features.astype(np.float32, copy=False)
            self.norms = np.sqrt(np.einsum("nkd,nkd->nk", features, features))
            nothing = self.norms == 0
        self.finite = np.isfinite(self.norms)
        self.blank = nothing.all(axis=1) & (metadata == 0).all(axis=(1, 2))


LOCAL_FAULTS: dict[str, tuple[Callable[[LocalBlock], np.ndarray], str]] = {
    "nan": (
        lambda block: (~block.finite & block.real).any(axis=1),
        "hold NaN or infinity: extract them again",
    ),
    "zero": (
        lambda block: ((block.norms == 0) & block.real).any(axis=1) & ~block.blank,
        "hold real descriptors that are all zero: extract them again; in a virtual file, look for a missing chunk",
    ),
    "blank": (
        lambda block: block.blank,
        "are all zero with metadata and all: a chunk is missing or was not written; copy the file or its parts again",
    ),
    "order": (
        lambda block: ((np.diff(block.weight, axis=1) > 0) & block.real[:, 1:] & block.real[:, :-1]).any(axis=1),
        "are not sorted by falling weight: sort each image's descriptors, the strongest first",
    ),
    "mask": (
        lambda block: ((block.mask != 0) & (block.mask != 1)).any(axis=1),
        "have mask values other than 0 and 1: this is not the release's mask column",
    ),
}
GLOBAL_FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "nan": (lambda norms: ~np.isfinite(norms), LOCAL_FAULTS["nan"][1]),
    "zero": (lambda norms: norms == 0, "are all zero: extract them again"),
}


def check_local(path: Path, report: Report, *, full: bool, block_bytes: int = BLOCK_BYTES) -> int:
    """Checks a file of local descriptors and gives its number of images; raises UserError where it cannot be opened."""
    source, faults = ReleaseSource(path), Faults()
    images = padding = masked_first = empty = 0
    low, high = np.inf, 0.0
    row_bytes = source.rows * (source.width // (8 if source.packed else 1) + 5) * 8
    for rows in sample_rows(path, len(source), row_bytes, block_bytes, full):
        block = LocalBlock(*source.read_raw(rows), source.packed)
        for kind, (fault, _) in LOCAL_FAULTS.items():
            faults.add(kind, np.arange(rows.start, rows.stop), fault(block))
        norms = block.norms[block.real & block.finite]
        low, high = min(low, float(norms.min(initial=low))), max(high, float(norms.max(initial=high)))
        images += len(block.real)
        padding += int(np.count_nonzero(~block.real))
        empty += int(np.count_nonzero(~block.real.any(axis=1)))  # pictures without key points
        masked_first += int(np.count_nonzero(~block.real[:, 0]))
    kind = f"{source.layout}{', virtual' if source.virtual else ''}{', packed bits' if source.packed else ''}"
    report.line(
        f"{path}: {kind}, {source.dtype} {len(source)} images × {source.rows} × {source.width}, "
        f"{100 * padding / max(1, images * source.rows):.1f} % padding"
        f"{'' if source.packed else f', norms {low:.3g}–{high:.3g}'}"
        f"{f', {empty} images without descriptors' if empty else ''}{_sampled(images, len(source))}"
    )
    if 2 * masked_first > images:
        report.problem(
            path,
            f"the strongest descriptor is masked in {masked_first} of {images} images: the mask is the wrong way "
            "round (1 must mark padding); write it as 1 - mask",
        )
    if source.virtual and "blank" in faults.count:
        faults.count.pop("zero", None)
    faults.tell(report, path, {kind: advice for kind, (_, advice) in LOCAL_FAULTS.items()})
    return len(source)


def check_global(
    path: Path,
    report: Report,
    *,
    full: bool,
    block_bytes: int = BLOCK_BYTES,
    is_empty: Callable[[int], bool] = lambda row: False,
) -> int:
    """Checks a file of global descriptors (HDF5 or .npy) and gives its number of images.

    is_empty: tells whether an image has no local descriptors, as a blank picture; its global one may be zero.
    """
    values, faults = GlobalDescriptors([path]), Faults()
    count, width = values.shape
    images, low, high = 0, np.inf, 0.0
    for rows in sample_rows(path, count, width * 8, block_bytes, full):
        norms = np.linalg.norm(values[rows].astype(np.float32), axis=1)
        for kind, (fault, _) in GLOBAL_FAULTS.items():
            found = fault(norms)
            if kind == "zero":
                found[[row for row in np.flatnonzero(found) if is_empty(rows.start + int(row))]] = False
            faults.add(kind, np.arange(rows.start, rows.stop), found)
        sound = norms[np.isfinite(norms) & (norms > 0)]
        low, high = min(low, sound.min(initial=low)), max(high, sound.max(initial=high))
        images += len(norms)
    report.line(f"{path}: global, {count} images × {width}, norms {low:.4g}–{high:.4g}{_sampled(images, count)}")
    faults.tell(report, path, {kind: advice for kind, (_, advice) in GLOBAL_FAULTS.items()})
    if np.isfinite(low) and (low < 0.99 or high > 1.01):
        report.problem(path, f"norms from {low:.4g} to {high:.4g}, expected 1: L2-normalise the global descriptors")
    return count


def sample_rows(path: Path, count: int, row_bytes: int, block_bytes: int, full: bool) -> Iterator[slice]:
    """Ranges of rows of a file to look at, none larger than `block_bytes`; reports how far the check of the file is."""
    at_once = max(1, block_bytes // max(row_bytes, 1))
    starts, run = [0], count
    if not full and count * row_bytes > WHOLE_BYTES and count > SAMPLE_RUNS * SAMPLE_RUN:
        starts, run = np.linspace(0, count - SAMPLE_RUN, SAMPLE_RUNS).astype(int).tolist(), SAMPLE_RUN
    with Progress(f"checking {path.name}", len(starts) * run, "images") as progress:
        for start in starts:
            for first in range(start, start + run, at_once):
                rows = slice(first, min(first + at_once, start + run))
                yield rows
                progress.update(rows.stop - rows.start)


def _sampled(images: int, count: int) -> str:
    return "" if images == count else f"; sampled {images} images, --full reads all"


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
