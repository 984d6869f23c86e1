"""Chunks of extracted descriptors → a data set like any other, and on request the release's HDF5 files."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.release_hdf5 import MASK, METADATA, SCALE, WEIGHT, X, Y
from ames_jax.data.shards import read_about, write_shards
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.chunks import ChunkFolder, ChunkRecords
from ames_jax.extraction.extracting import ExtractionJob, refuse_other
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file as write_text


def prepare_folder(job: ExtractionJob) -> dict[str, Any] | None:
    """Checks that the split can be written to the folder; the facts of the split where it is finished already.

    Raises:
      UserError: the folder holds descriptors of another backbone, or this split of other images.
    """
    about = read_about(job.root)
    if about and about.get("extraction") != job.backbone.settings:
        raise UserError(
            f"--out={job.root} holds descriptors made with {about.get('extraction') or about.get('backbone')}, now "
            f"{job.backbone.settings}; use the same settings, or another folder"
        )
    _refuse_other_statistics(job)
    path = _facts_path(job)
    if not path.exists():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    refuse_other(path, facts, job.facts())
    return facts


def write_data_set(
    job: ExtractionJob, *, name: str | None = None, dtype: str = "float16", hdf5: bool = False
) -> dict[str, Any]:
    """Writes the split from its finished chunks, and then deletes these; gives the facts of the split.

    Args:
      name: of the data set; by default the folder's. dtype: storage, see `RecordFormat`.
      hdf5: write the release's files too.

    Raises:
      UserError: another host is at it; no image is whole; broken images that were skipped before and are not now.
    """
    chunks = job.chunks
    with _alone(job, chunks):
        broken = {
            job.images.files[row].id: why
            for number, chunk in enumerate(chunks)
            for row, why in zip(chunks.rows(number), chunk.broken)
            if why
        }
        _refuse_broken(job, chunks, broken)
        whole = [row for row, file in enumerate(job.images.files) if file.id not in broken]
        records = ChunkRecords(
            chunks, [file.id for file in job.images.files], [file.label for file in job.images.files], whole
        )
        _write_lists(job, chunks, whole, broken)
        if hdf5:
            write_hdf5(job, chunks, records)
        name = read_about(job.root).get("name") or name or _data_set_name(job.root)
        width, count = job.backbone.width, job.backbone.descriptors
        write_shards(job.root, name, {job.split: records}, descriptors=count, width=width, dtype=dtype)
        _write_about(job, name)
        facts = {**job.facts(), "written": len(whole), "broken": broken}
        write_text(_facts_path(job), json.dumps(facts, indent=1))
    shutil.rmtree(chunks.folder)
    with suppress(OSError):  # not empty: another split is being extracted
        chunks.folder.parent.rmdir()
    return facts


def _refuse_other_statistics(job: ExtractionJob) -> None:
    """Keeps what a query needs beside the settings: of sift, its statistics."""
    statistics = getattr(job.backbone, "statistics", None)
    if statistics is None:
        return
    path = job.root / STATISTICS_FILE
    if path.exists():
        if SiftStatistics.load(path).fingerprint() != statistics.fingerprint():
            raise UserError(
                f"{path}: other SIFT statistics than those given; use --statistics={path}, or another --out"
            )
        return
    try:
        job.root.mkdir(parents=True, exist_ok=True)
        unfinished = job.root / f".{os.getpid()}.{STATISTICS_FILE}"
        statistics.save(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"--out={job.root} cannot be written: {error.strerror}") from error


def _refuse_broken(job: ExtractionJob, chunks: ChunkFolder, broken: dict[str, str]) -> None:
    if broken and not job.skip_broken:
        raise UserError(
            f"{next(iter(broken.values()))} ({len(broken)} broken images in all); give --skip-broken, or mend them and "
            f"delete {chunks.folder}"
        )
    if len(broken) == len(job.images):
        raise UserError(f"none of the {len(broken)} images can be read; the first: {next(iter(broken.values()))}")


def _write_lists(job: ExtractionJob, chunks: ChunkFolder, whole: list[int], broken: dict[str, str]) -> None:
    """Global descriptors, sizes, names of labels and the broken images; ids and labels come with the shards."""
    for folder in ("global", "images"):
        (job.root / folder).mkdir(exist_ok=True)
    values = np.concatenate([chunk.global_descriptors for chunk in chunks])[whole]
    _save(job.root / "global" / f"{job.split}.npy", values)
    _save(job.root / "images" / f"{job.split}.sizes.npy", np.concatenate([chunk.sizes for chunk in chunks])[whole])
    lists = job.root / "images"
    if job.images.label_names:
        write_text(lists / f"{job.split}.label_names.txt", "".join(f"{name}\n" for name in job.images.label_names))
    if broken:
        write_text(lists / f"{job.split}.broken.txt", "".join(f"{name}\t{why}\n" for name, why in broken.items()))


def _save(path: Path, values: np.ndarray) -> None:
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    np.save(unfinished, values)
    os.replace(unfinished, path)


def write_hdf5(job: ExtractionJob, chunks: ChunkFolder, records: ChunkRecords) -> None:
    """`BACKBONE_SPLIT_local.hdf5` (flat, float16), `BACKBONE_SPLIT_global.hdf5` and `SPLIT.txt` in the release's layout."""
    import h5py

    backbone, prefix = job.backbone, f"{job.backbone.name}_{job.split}"
    values = np.load(job.root / "global" / f"{job.split}.npy")
    sizes = np.load(job.root / "images" / f"{job.split}.sizes.npy")
    row_shape = backbone.descriptors, METADATA + backbone.width
    with _whole_file(job.root / f"{prefix}_local.hdf5") as path, h5py.File(path, "w") as file:
        features = file.create_dataset("features", (len(records), *row_shape), np.float16, chunks=(1, *row_shape))
        lines, labelled = [], all(file.label >= 0 for file in job.images.files)
        for i in range(len(records)):
            record = records[i]
            local, row = record.descriptors, np.zeros(row_shape, np.float16)
            row[:, [X, Y]], row[:, SCALE], row[:, WEIGHT] = local.xy, local.scale, local.weight
            row[:, MASK], row[:, METADATA:] = ~local.valid, local.features
            features[i] = row
            label = [str(record.label)] if labelled else []
            lines.append(",".join([record.id, *label, *map(str, sizes[i])]))
    with _whole_file(job.root / f"{prefix}_global.hdf5") as path, h5py.File(path, "w") as file:
        file.create_dataset("features", data=values)
    write_text(job.root / f"{job.split}.txt", "".join(f"{line}\n" for line in lines))


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    yield unfinished
    os.replace(unfinished, path)


def _write_about(job: ExtractionJob, name: str) -> None:
    before, backbone = read_about(job.root), job.backbone
    facts = {
        "name": name, "backbone": backbone.name, "width": backbone.width,
        "global": backbone.global_name, "extraction": backbone.settings,
        "images": {**before.get("images", {}), job.split: str(job.images.root.resolve())},
    }  # fmt: skip
    write_text(job.root / "about.json", json.dumps(facts, indent=1))


def _facts_path(job: ExtractionJob) -> Path:
    return job.root / "images" / f"{job.split}.extracted.json"


def _data_set_name(root: Path) -> str:
    """TFDS wants lower case, digits and underscores, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "_", root.resolve().name.lower()).strip("_")
    return name if name[:1].isalpha() else f"images_{name}".rstrip("_")


@contextmanager
def _alone(job: ExtractionJob, chunks: ChunkFolder) -> Iterator[None]:
    """Of hosts that finish together, one writes the data set."""
    if job.processes == 1:
        yield
        return
    lock = chunks.folder / "writing.lock"
    try:
        with lock.open("x", encoding="utf-8") as file:
            file.write(f"{socket.gethostname()}, process {os.getpid()}")
    except FileExistsError as error:
        raise UserError(
            f"the data set is being written by {lock.read_text(encoding='utf-8')}; if that was killed, delete {lock} and "
            "run the same command again"
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
