"""A finished split in the layout of the release: HDF5 files and a text list."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from ames_jax.data.release_hdf5 import MASK, METADATA, SCALE, WEIGHT, X, Y
from ames_jax.data.shards import open_split
from ames_jax.extraction.extracting import ExtractionJob
from ames_jax.runtime.checksums import entries, record, recorded
from ames_jax.runtime.files import need_space, read_array, whole_file, write_file
from ames_jax.runtime.progress import Progress


def hdf5_bytes(job: ExtractionJob) -> int:
    """Bytes of the HDF5 files of a split."""
    local = 2 * job.backbone.descriptors * (METADATA + job.backbone.width)
    return len(job.images) * (local + 4 * job.backbone.global_width)


def write_hdf5(job: ExtractionJob) -> None:
    """Writes the split, which is finished, in the release's layout, unless that was done after it was finished.

    `BACKBONE_SPLIT_local.hdf5` (flat, float16), `BACKBONE_SPLIT_global.hdf5` and `SPLIT.txt`, and their checksums.
    """
    prefix, kinds = f"{job.backbone.name}_{job.split}", ("local.hdf5", "global.hdf5")
    local, globally, text = [*(job.root / f"{prefix}_{kind}" for kind in kinds), job.root / f"{job.split}.txt"]
    names, finished = [path.name for path in (local, globally, text)], job.facts_file.stat().st_mtime_ns
    if all(path.exists() and path.stat().st_mtime_ns >= finished for path in (local, globally, text)):
        if not entries(job.root).keys() >= set(names):  # a run that was killed after the last of them
            record(job.root, *names)
        return
    need_space(job.root, hdf5_bytes(job))
    with recorded(job.root, *names):
        _write(job, local, globally, text)


def _write(job: ExtractionJob, local: Path, globally: Path, text: Path) -> None:
    source, sizes = open_split(job.root, job.split), read_array(job.root / "images" / f"{job.split}.sizes.npy")
    shape, lines = (job.backbone.descriptors, METADATA + job.backbone.width), []
    labelled = (source.labels() >= 0).all()
    with (
        Progress("writing HDF5", len(source), "images") as progress,
        whole_file(local) as path,
        h5py.File(path, "w") as file,
    ):
        features = file.create_dataset("features", (len(source), *shape), np.float16, chunks=(1, *shape))
        for i in progress.over(range(len(source))):
            record, row = source[i], np.zeros(shape, np.float16)
            descriptors = record.descriptors
            row[:, [X, Y]], row[:, SCALE], row[:, WEIGHT] = descriptors.xy, descriptors.scale, descriptors.weight
            row[:, MASK], row[:, METADATA:] = ~descriptors.valid, descriptors.features
            features[i] = row
            label = [str(record.label)] if labelled else []
            lines.append(",".join([record.id, *label, *map(str, sizes[i])]))
    with whole_file(globally) as path, h5py.File(path, "w") as file:
        file.create_dataset("features", data=read_array(job.root / "global" / f"{job.split}.npy"))
    write_file(text, "".join(f"{line}\n" for line in lines))
