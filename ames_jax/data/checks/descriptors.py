"""Checks of files of descriptors: values, masks, order and norms, in blocks and, where files are large, in samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ames_jax.data.checks.reports import Faults, Report
from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.release_hdf5 import MASK, WEIGHT, ReleaseSource
from ames_jax.runtime.progress import Progress

# Without --full, of files that take more than WHOLE_BYTES to look at: so many runs of so many images, evenly spread.
SAMPLE_RUNS, SAMPLE_RUN = 128, 16
WHOLE_BYTES = 4 * 2**30
BLOCK_BYTES = 64 * 2**20


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
