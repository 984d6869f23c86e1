"""One shard of a data set: written whole or not at all, checked, and many of them in parallel processes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ames_jax.data.records import ImageRecord, RecordFormat

# Stored descriptors hardly compress, and reading plain bytes is several times as fast as unpacking them.
WRITER_OPTIONS = "group_size:1,uncompressed"
UNFINISHED = ".unfinished"

Source = Sequence[ImageRecord]


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Rows [start, stop) of a split's source, to be written to one file of the data set."""

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
        """Where TFDS looks for this shard."""
        return self.root / f"{self.name}-{self.split}.array_record-{self.index:05d}-of-{self.of:05d}"

    @property
    def receipt(self) -> Path:
        """Counts and checksum of the shard; there before the shard is, so a shard without one is never trusted."""
        return self.root / UNFINISHED / f"{self.path.name}.json"

    @property
    def content(self) -> Path:
        """Ids and labels that `verify_shard` found in the shard."""
        return self.root / UNFINISHED / f"{self.path.name}.content.json"


def is_written(task: ShardTask) -> bool:
    """True when the shard is whole: its receipt is there and its size is the one in the receipt."""
    if not (task.path.exists() and task.receipt.exists()):
        return False
    return json.loads(task.receipt.read_text())["file_bytes"] == task.path.stat().st_size


def write_shard(task: ShardTask, source: Source) -> None:
    """Writes one shard under another name, then its receipt, then gives it its name; a whole shard is left alone."""
    from array_record.python.array_record_module import ArrayRecordWriter

    if is_written(task):
        return
    unfinished = task.receipt.with_suffix(f".{os.getpid()}")
    digest, size = hashlib.sha256(), 0
    writer = ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
    for row in range(task.start, task.stop):
        data = task.format.encode(source[row])
        writer.write(data)
        digest.update(data)
        size += len(data)
    writer.close()
    receipt = {
        "records": task.stop - task.start,
        "bytes": size,
        "sha256": digest.hexdigest(),
        "file_bytes": unfinished.stat().st_size,
    }
    write_text(task.receipt, json.dumps(receipt))
    os.replace(unfinished, task.path)


def verify_shard(task: ShardTask, _source: Source) -> str | None:
    """Reads a shard back and compares it with its receipt: what is wrong with it, or None; keeps its ids and labels."""
    if not is_written(task):
        return f"{task.path}: not written yet; write it, then verify the data set"
    receipt = json.loads(task.receipt.read_text())
    ids, labels = [], []
    problem = check_shard(task.path, receipt["records"], receipt["sha256"], task.format, ids, labels)
    if problem is None:
        write_text(task.content, json.dumps({"ids": ids, "labels": labels}))
    return problem


def check_shard(
    path: Path, records: int, sha256: str, record_format: RecordFormat, ids: list[str], labels: list[int]
) -> str | None:
    """What differs in a shard from the count and the checksum (of all records' bytes) it should have, or None.

    Reads all of it, and adds the ids and labels of its records to the two lists.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    again = "delete it and write the data set again"
    digest = hashlib.sha256()
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        for row in range(found):
            data = reader.read([row])[0]
            digest.update(data)
            image = record_format.decode(data)
            ids.append(image.id)
            labels.append(image.label)
        reader.close()
    except Exception as error:  # array_record raises RuntimeError and ValueError, and a bad record fails in many ways
        return f"{path}: cannot be read ({str(error).splitlines()[0]}); {again}"
    if found != records:
        return f"{path}: {found} records, expected {records}; {again}"
    if digest.hexdigest() != sha256:
        return f"{path}: its records are not those that were written; {again}"
    return None


Runner = Callable[[Callable[[ShardTask, Source], Any], Sequence[ShardTask]], Iterable[Any]]


@contextlib.contextmanager
def task_runner(splits: Mapping[str, Source], processes: int) -> Iterator[Runner]:
    """`run(function, tasks)` → what `function(task, source of its split)` returned for every task, in their order."""
    if processes <= 1:
        yield lambda function, tasks: [function(task, splits[task.split]) for task in tasks]
        return
    # Forking a process that runs JAX's threads can hang, so workers start from nothing and are given the sources once.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_take_sources, initargs=(dict(splits),)) as pool:
        yield lambda function, tasks: pool.map(_run_with_sources, [function] * len(tasks), tasks)


_sources: Mapping[str, Source] = {}


def _take_sources(splits: Mapping[str, Source]) -> None:
    global _sources
    _sources = splits


def _run_with_sources(function: Callable[[ShardTask, Source], Any], task: ShardTask) -> Any:
    return function(task, _sources[task.split])


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
