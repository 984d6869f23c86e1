"""Writing a data set: its shards, in processes or on a cluster, continued after a kill and read back; then the metadata.

    ROOT/.unfinished/SPLIT/settings.json    with which settings the split is being written
    ROOT/.unfinished/SPLIT/SHARD.json       receipt of a shard: its size and checksum, and ids and labels once it was read back

A split becomes part of the data set when all its shards are there; until then readers do not see it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import multiprocessing
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from ames_jax.data import records as image_records
from ames_jax.data.lists import write_ids
from ames_jax.data.records import GEOMETRY, ImageRecord, RecordFormat, check_name, check_new_split, read_shard
from ames_jax.runtime import cache
from ames_jax.runtime.checksums import entries, recorded, sealed, unsealed
from ames_jax.runtime.cores import end_with_parent, usable_cores
from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.files import (
    lock,
    need_space,
    read_json,
    refuse_other,
    same_job,
    whole_file,
    write_array,
    write_json,
)
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():  # neither exists for Windows, where all else works
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

# Stored descriptors hardly compress, and reading plain bytes is several times as fast as unpacking them.
WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_BYTES = 512 * 2**20
# Below this a second process costs more to start than it saves.
PARALLEL_BYTES = 256 * 2**20
UNFINISHED, METADATA = ".unfinished", ("dataset_info.json", "features.json", "shards.json")
RECEIPT = ("records", "bytes", "sha256", "file_bytes")
OF_A_SPLIT = ("images", "shards", "first", "last", "inputs")  # settings in which the splits of a data set may differ
ADVICE = "Use the same settings and source, another folder, or delete this one"

Source = Sequence[ImageRecord]


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Rows [start, stop) of a split's images, to be written to one file of the data set."""

    root: Path
    name: str
    split: str
    index: int
    of: int
    start: int
    stop: int
    format: RecordFormat

    @property
    def path(self) -> Path:
        """The file of the shard, named as TFDS expects it."""
        return self.root / f"{self.name}-{self.split}.array_record-{self.index:05d}-of-{self.of:05d}"

    @property
    def receipt(self) -> Path:
        """Counts and checksum of the shard; there before the shard is, so a shard without one is never trusted."""
        return self.root / UNFINISHED / self.split / f"{self.path.name}.json"

    def facts(self) -> dict[str, Any]:
        """The content of the receipt, nothing where there is none; raises UserError where it is damaged."""
        return unsealed(self.receipt, read_json(self.receipt, missing={}))

    def is_written(self) -> bool:
        """True when the shard is whole: its receipt is there and its size is the one in the receipt."""
        return self.path.exists() and self.path.stat().st_size == self.facts().get("file_bytes")


def write_shards(
    root: str | Path,
    name: str,
    splits: Mapping[str, Source],
    *,
    descriptors: int,
    width: int,
    dtype: str = "float16",
    shards: int | None = None,
    processes: int | None = None,
    beam: Sequence[str] | None = None,
) -> None:
    """Writes a data set, or adds splits to it.

    Args:
      root: folder of the data set. A run that was killed is continued: whole shards are kept, and the bytes at the end
        are those of an unbroken run.
      name: name of the data set, lower case with underscores.
      splits: split name → picklable random-access sequence of `ImageRecord`.
      descriptors, width, dtype: see `RecordFormat`. xy, scale and weight are kept where the first image has them.
      shards: files of each split; by default one for every 512 MiB.
      processes: writing processes; by default one per CPU core where there is enough to write. They are spawned, so a
        script that calls this with more than one needs the usual `if __name__ == "__main__":`.
      beam: write with Apache Beam and these options, e.g. `["--runner=FlinkRunner"]` (none: its direct runner); the
        workers must see the folder, and the files behind the splits, under the same paths.

    Raises UserError: `root` was begun with other settings, or another process writes there; an image, or all of it, does not
      fit; a shard does not hold what was written to it; a package is missing.
    """
    with lock(Path(root) / "shards.json", cache.home()), requires("tensorflow-datasets array-record", "writing shards"):
        tasks = plan_shards(root, name, splits, descriptors=descriptors, width=width, dtype=dtype, shards=shards)
        need_space(Path(root), sum(left := bytes_left(tasks)))
        if beam is not None:
            _complete_with_beam(tasks, splits, beam)
        else:
            # All are started at once, with work or without.
            processes = min(processes or (1 if sum(left) < PARALLEL_BYTES else usable_cores()), max(1, len(left)))
            with Progress(f"writing {name}", sum(task.stop - task.start for task in tasks), "images") as progress:
                for task in _completed(tasks, splits, processes):
                    progress.update(task.stop - task.start)
        finish(tasks)


def plan_shards(
    root: str | Path,
    name: str,
    splits: Mapping[str, Source],
    *,
    descriptors: int,
    width: int,
    dtype: str = "float16",
    shards: int | None = None,
) -> list[ShardTask]:
    """The shards of the splits that are not finished, and the folder made ready for them; arguments as `write_shards`."""
    root = Path(root)
    check_name(name)
    for split, source in splits.items():
        check_new_split(root, split)
        if not len(source):
            raise UserError(f"{root}: split {split!r} has no images")
    first = next(iter(splits.values()))[0].descriptors
    record_format = RecordFormat(descriptors, width, dtype, tuple(g for g in GEOMETRY if getattr(first, g) is not None))
    tasks = []
    for split, source in splits.items():
        count = min(len(source), shards or math.ceil(len(source) * record_format.record_bytes / SHARD_BYTES))
        edges = [len(source) * i // count for i in range(count + 1)]
        own = [ShardTask(root, name, split, i, count, edges[i], edges[i + 1], record_format) for i in range(count)]
        if not _claim(own, source):
            tasks += own
    return tasks


def write_shard(task: ShardTask, images: Iterable[ImageRecord]) -> None:
    """Writes the images under another name, then the receipt, and then gives the shard its name."""
    digest, records, size = hashlib.sha256(), 0, 0
    with whole_file(task.path) as partial:
        writer = array_record_module.ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        for image in images:
            data = task.format.encode(image)
            writer.write(data)
            digest.update(data)
            records, size = records + 1, size + len(data)
        writer.close()
        facts = (records, size, digest.hexdigest(), partial.stat().st_size)
        write_json(task.receipt, sealed(dict(zip(RECEIPT, facts))))


def verify_shard(task: ShardTask) -> None:
    """Reads a shard back and adds its ids and labels to its receipt; raises UserError where it is not what was written."""
    if not task.is_written():
        raise UserError(f"{task.path}: not written yet; write it, then verify the data set")
    receipt = task.facts()
    ids, labels = read_shard(task.path, receipt["records"], receipt["sha256"], task.format)
    write_json(task.receipt, sealed({**receipt, "ids": ids, "labels": list(map(int, labels))}))


def finish(tasks: Sequence[ShardTask]) -> None:
    """Adds the splits whose shards were all written and verified to the data set's metadata."""
    for split, group in itertools.groupby(tasks, lambda task: task.split):
        own = list(group)
        root, folder = own[0].root, own[0].receipt.parent
        receipts = [task.facts() for task in own]
        ids, labels = ([value for receipt in receipts for value in receipt[key]] for key in ("ids", "labels"))
        lists = root / "images"
        with recorded(lists, f"{split}.ids.txt", f"{split}.labels.npy"):
            write_ids(lists / f"{split}.ids.txt", ids)
            write_array(lists / f"{split}.labels.npy", np.array(labels, np.int64))
        files = {task.path.name: {key: receipt[key] for key in RECEIPT} for task, receipt in zip(own, receipts)}
        entry = {"settings": read_json(folder / "settings.json"), "files": files}
        finished = image_records.read_finished(root) | {split: entry}
        with recorded(root, *METADATA):
            _write_metadata(root, own[0].name, own[0].format, finished)
            write_json(root / "shards.json", finished)
        clear(folder)


def clear(folder: Path) -> None:
    """Removes what was kept of a split while it was unfinished, and the folder above it where it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another split is unfinished
        folder.parent.rmdir()


def _completed(tasks: Sequence[ShardTask], splits: Mapping[str, Source], processes: int) -> Iterator[ShardTask]:
    """The shards in their order, each when it is written and verified."""
    if processes <= 1:
        yield from (_complete(task, splits) for task in tasks)
        return
    # Forking a process that runs JAX's threads can hang, so workers start from nothing and are given the sources once.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_take_sources, initargs=(dict(splits),)) as pool:
        yield from pool.map(_complete, tasks)


_sources: Mapping[str, Source] = {}  # of a worker process


def _take_sources(splits: Mapping[str, Source]) -> None:
    global _sources
    _sources = splits
    end_with_parent()


def _complete(task: ShardTask, splits: Mapping[str, Source] | None = None) -> ShardTask:
    if not task.is_written():
        source = (splits or _sources)[task.split]
        write_shard(task, (source[row] for row in range(task.start, task.stop)))
    verify_shard(task)
    return task


def _complete_with_beam(tasks: Sequence[ShardTask], splits: Mapping[str, Source], options: Sequence[str]) -> None:
    with requires("apache-beam", "writing on a cluster"):
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline, Progress("writing on the cluster"):
        _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | beam.Map(_complete, dict(splits))


def _claim(tasks: Sequence[ShardTask], source: Source) -> bool:
    """Makes the folder ready for a split and checks its settings against what is there; True when all is written."""
    task = tasks[0]
    settings = {"name": task.name, **dataclasses.asdict(task.format), "geometry": list(task.format.geometry)}
    settings |= {"images": len(source), "shards": task.of, "first": source[0].id, "last": source[len(source) - 1].id}
    if hasattr(source, "content"):  # files; images in memory are known by their ids alone
        settings["inputs"] = source.content()
    finished = image_records.read_finished(task.root)
    for split, entry in finished.items():
        free = () if split == task.split else OF_A_SPLIT
        refuse_other(f"{task.root} {split}", entry["settings"], settings, free=free, later=("inputs",), advice=ADVICE)
    files = finished.get(task.split, {}).get("files", {})
    if files and all(t.path.exists() and t.path.stat().st_size == files[t.path.name]["file_bytes"] for t in tasks):
        if task.receipt.parent.exists() and not entries(task.root).keys() >= set(METADATA):
            with recorded(task.root, *METADATA):  # which a run that was killed at its very end had left to do
                _write_metadata(task.root, task.name, task.format, finished)
        clear(task.receipt.parent)
        return True
    same_job(task.receipt.with_name("settings.json"), settings, later=("inputs",), advice=ADVICE)
    for own in tasks if files else ():
        write_json(own.receipt, sealed(files[own.path.name]))
    return False


def _write_metadata(root: Path, name: str, record_format: RecordFormat, finished: Mapping[str, Any]) -> None:
    """dataset_info.json and features.json, as TFDS reads them."""
    template = tfds.core.ShardedFileTemplate(dataset_name=name, data_dir=root, filetype_suffix="array_record")
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[file["records"] for file in entry["files"].values()],
            num_bytes=sum(file["bytes"] for file in entry["files"].values()),
            filename_template=template.replace(split=split),
        )
        for split, entry in finished.items()
    ]
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(root), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=record_format.features, disable_shuffling=True)
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(root)


def bytes_left(tasks: Sequence[ShardTask]) -> list[int]:
    """Bytes that each shard which is not written yet will take."""
    return [(task.stop - task.start) * task.format.record_bytes for task in tasks if not task.is_written()]
