"""Checks of the release's HDF5 files: values, masks, order and norms, in blocks and, for large files, in samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ames_jax.data.checks.reports import Report
from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.release_hdf5 import MASK, WEIGHT, LocalFeatures

# Without --full, of files that take more than WHOLE_BYTES to look at: so many runs of so many images, evenly spread.
SAMPLE_RUNS, SAMPLE_RUN = 128, 16
WHOLE_BYTES = 4 * 2**30


def sample_rows(count: int, row_bytes: int, block_bytes: int, full: bool) -> Iterator[slice]:
    """Ranges of rows to look at, none larger than `block_bytes`."""
    at_once = max(1, block_bytes // max(row_bytes, 1))
    if full or count * row_bytes <= WHOLE_BYTES or count <= SAMPLE_RUNS * SAMPLE_RUN:
        yield from (slice(start, min(start + at_once, count)) for start in range(0, count, at_once))
        return
    for start in np.linspace(0, count - SAMPLE_RUN, SAMPLE_RUNS).astype(int):
        for first in range(start, start + SAMPLE_RUN, at_once):
            yield slice(first, min(first + at_once, start + SAMPLE_RUN))


@dataclasses.dataclass
class _Seen:
    """Sums over the images that were looked at, and the first image of every fault."""

    images: int = 0
    padding: int = 0
    norm_low: float = np.inf
    norm_high: float = 0.0
    empty_first: int = 0
    first: dict[str, int] = dataclasses.field(default_factory=dict)
    count: dict[str, int] = dataclasses.field(default_factory=dict)

    def fault(self, kind: str, start: int, images: np.ndarray) -> None:
        """Counts the images (bool [n], from image `start` on) that have a fault."""
        if images.any():
            self.first.setdefault(kind, start + int(np.argmax(images)))
            self.count[kind] = self.count.get(kind, 0) + int(np.count_nonzero(images))


ADVICE = {
    "nan": "hold NaN or infinity: extract them again",
    "zero": "hold real descriptors that are all zero: extract them again; in a virtual file, look for a missing chunk",
    "blank": "are all zero with metadata and all: a chunk is missing or was not written; copy the file or its parts again",
    "empty": "have no real descriptor: leave them out or extract them again",
    "order": "are not sorted by falling weight: sort each image's descriptors, the strongest first",
    "mask": "have mask values other than 0 and 1: this is not the release's mask column",
}


def check_local(path: Path, report: Report, *, full: bool, block_bytes: int) -> int:
    """Checks a file of local descriptors and gives its number of images; raises UserError where it cannot be opened."""
    local = LocalFeatures(path)
    seen = _Seen()
    row_bytes = local.rows * (local.width // (8 if local.packed else 1) + 5) * 8
    for rows in sample_rows(len(local), row_bytes, block_bytes, full):
        _look(local, rows, seen)
    kind = f"{local.layout}{', virtual' if local.virtual else ''}{', packed bits' if local.packed else ''}"
    sampled = "" if seen.images == len(local) else f"; sampled {seen.images} images, --full reads all"
    padding = seen.padding / max(1, seen.images * local.rows)
    norms = "" if local.packed else f", norms {seen.norm_low:.3g}–{seen.norm_high:.3g}"
    report.line(
        f"{path}: {kind}, {local.dtype} {len(local)} images × {local.rows} × {local.width}, "
        f"{100 * padding:.1f} % padding{norms}{sampled}"
    )
    if 2 * seen.empty_first > seen.images:
        report.problem(
            path,
            f"the strongest descriptor is masked in {seen.empty_first} of {seen.images} images: the mask is the wrong way "
            "round (1 must mark padding); write it as 1 - mask",
        )
        seen.count.pop("empty", None)
    if local.virtual and "blank" in seen.count:
        seen.count.pop("zero", None)
    for kind, advice in ADVICE.items():
        if kind in seen.count:
            report.problem(path, f"{seen.count[kind]} images, the first of them {seen.first[kind]}, {advice}")
    return len(local)


def _look(local: LocalFeatures, rows: slice, seen: _Seen) -> None:
    metadata, features = local.read_raw(rows)
    mask, weight = metadata[..., MASK], metadata[..., WEIGHT]
    real = mask == 0
    start = rows.start
    if local.packed:
        zero = ~features.any(axis=2)
    else:
        features = features.astype(np.float32, copy=False)
        norms = np.sqrt(np.einsum("nkd,nkd->nk", features, features))
        zero = norms == 0
        finite = np.isfinite(norms)
        seen.fault("nan", start, (~finite & real).any(axis=1))
        if (real & finite).any():
            seen.norm_low = min(seen.norm_low, float(norms[real & finite].min()))
            seen.norm_high = max(seen.norm_high, float(norms[real & finite].max()))
    blank = zero.all(axis=1) & (metadata == 0).all(axis=(1, 2))
    seen.fault("blank", start, blank)
    if not local.packed:  # bits may all be zero
        seen.fault("zero", start, (zero & real).any(axis=1) & ~blank)
    seen.images += len(real)
    seen.padding += int(np.count_nonzero(~real))
    seen.empty_first += int(np.count_nonzero(~real[:, 0]))
    seen.fault("mask", start, ((mask != 0) & (mask != 1)).any(axis=1))
    seen.fault("empty", start, ~real.any(axis=1))
    both = real[:, 1:] & real[:, :-1]
    seen.fault("order", start, ((np.diff(weight, axis=1) > 0) & both).any(axis=1))


def check_global(path: Path, report: Report, *, full: bool, block_bytes: int) -> int:
    """Checks a file of global descriptors (HDF5 or .npy) and gives its number of images."""
    values = GlobalDescriptors([path])
    count, width = values.shape
    bad, zero, images, low, high = [], [], 0, np.inf, 0.0
    for rows in sample_rows(count, width * 8, block_bytes, full):
        norms = np.linalg.norm(values[rows].astype(np.float32), axis=1)
        finite = np.isfinite(norms)
        bad += (rows.start + np.flatnonzero(~finite)).tolist()
        zero += (rows.start + np.flatnonzero(norms == 0)).tolist()
        kept = norms[finite & (norms > 0)]
        low, high = min(low, kept.min(initial=low)), max(high, kept.max(initial=high))
        images += len(norms)
    sampled = "" if images == count else f"; sampled {images} images, --full reads all"
    report.line(f"{path}: global, {count} images × {width}, norms {low:.4g}–{high:.4g}{sampled}")
    if bad:
        report.problem(path, f"{len(bad)} images, the first of them {bad[0]}, {ADVICE['nan']}")
    if zero:
        report.problem(path, f"{len(zero)} images, the first of them {zero[0]}, are all zero: extract them again")
    if np.isfinite(low) and (low < 0.99 or high > 1.01):
        report.problem(path, f"norms from {low:.4g} to {high:.4g}, expected 1: L2-normalise the global descriptors")
    return count
