"""Writing a data set: its shards in parallel processes, continued after a kill, verified, then the metadata."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ames_jax.data.records import GEOMETRY, RecordFormat
from ames_jax.data.shard_tasks import (
    UNFINISHED,
    ShardTask,
    Source,
    is_written,
    task_runner,
    verify_shard,
    write_shard,
    write_text,
)
from ames_jax.runtime.errors import UserError

SHARD_BYTES = 512 * 2**20
# Below this a second process costs more to start than it saves.
PARALLEL_BYTES = 256 * 2**20


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
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes a data set, or adds splits to it.

    Args:
      root: folder of the data set. A run that was killed is continued: whole shards are kept, and the bytes at the end
        are those of an unbroken run.
      name: name of the data set, lower case with underscores.
      splits: split name → picklable random-access sequence of `ImageRecord`.
      descriptors, width, dtype: see `RecordFormat`. xy, scale and weight are kept where the first image has them.
      shards: files a split; by default one for every 512 MiB.
      processes: writing processes; by default one a CPU core where there is enough to write. They are spawned, so a
        script that calls this with more than one needs the usual `if __name__ == "__main__":`.
      about: free facts, written to about.json.

    Raises:
      UserError: for settings other than those a finished or unfinished data set at `root` was written with, an image
        that does not fit, or a shard that does not hold what was written to it.
    """
    plan = plan_shards(root, name, splits, descriptors=descriptors, width=width, dtype=dtype, shards=shards)
    count = processes or _process_count(plan)
    with task_runner(splits, count) as run:
        for _ in run(write_shard, [task for task in plan if not is_written(task)]):
            pass
        for problem in run(verify_shard, plan):
            if problem:
                raise UserError(problem)
    finish(plan)
    if about is not None:
        write_text(Path(root) / "about.json", json.dumps(dict(about), indent=1))


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
    """The shards of the splits that are not finished, and the folder made ready for them; arguments as `write_shards`.

    A cluster runs `write_shard` and then `verify_shard` on each, in any order, on any hosts that see `root`, and then
    `finish` once.
    """
    root = Path(root)
    for split, source in splits.items():
        if not len(source):
            raise UserError(f"{root}: split {split!r} has no images")
    first = next(iter(splits.values()))[0].descriptors
    geometry = tuple(part for part in GEOMETRY if getattr(first, part) is not None)
    record_format = RecordFormat(descriptors, width, dtype, geometry)
    plan = []
    for split, source in splits.items():
        count = shards or math.ceil(len(source) * _record_bytes(record_format) / SHARD_BYTES)
        count = min(count, len(source))
        edges = [len(source) * i // count for i in range(count + 1)]
        tasks = [ShardTask(root, name, split, i, count, edges[i], edges[i + 1], record_format) for i in range(count)]
        if not _claim(tasks, source):
            plan += tasks
    return plan


def finish(plan: Sequence[ShardTask]) -> None:
    """Adds the splits whose shards were all written and verified to the data set's metadata."""
    if not plan:
        return
    root = plan[0].root
    finished = _finished(root)
    for split in dict.fromkeys(task.split for task in plan):
        tasks = [task for task in plan if task.split == split]
        _write_lists(root, split, [json.loads(task.content.read_text()) for task in tasks])
        files = {task.path.name: json.loads(task.receipt.read_text()) for task in tasks}
        finished[split] = {"settings": _settings_file(root, split)[1], "files": files}
    _write_metadata(root, plan[0].name, plan[0].format, finished)
    write_text(root / "shards.json", json.dumps(finished, indent=1))
    shutil.rmtree(root / UNFINISHED)


def _claim(tasks: Sequence[ShardTask], source: Source) -> bool:
    """Makes the folder ready for a split and checks its settings against what is there; True when all is written."""
    task = tasks[0]
    settings = {
        "name": task.name,
        **dataclasses.asdict(task.format),
        "geometry": list(task.format.geometry),
        "images": len(source),
        "shards": task.of,
        "first": source[0].id,
        "last": source[len(source) - 1].id,
    }
    finished = _finished(task.root)
    for split, entry in finished.items():
        per_split = () if split == task.split else ("images", "shards", "first", "last")
        _compare(task.root, split, entry["settings"], settings, per_split)
    if task.split in finished:
        files = finished[task.split]["files"]
        if all(t.path.exists() and t.path.stat().st_size == files[t.path.name]["file_bytes"] for t in tasks):
            return True
    path, before = _settings_file(task.root, task.split)
    if before is not None:
        _compare(task.root, task.split, before, settings, ())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings))
    for t in tasks if task.split in finished else ():
        write_text(t.receipt, json.dumps(finished[task.split]["files"][t.path.name]))
    return False


def _compare(root: Path, split: str, before: dict, now: dict, ignored: Sequence[str]) -> None:
    for key in (key for key in now if key not in ignored and before[key] != now[key]):
        raise UserError(
            f"{root}: split {split!r} was written with {key} = {before[key]}, now {key} = {now[key]}; "
            "use the same settings and source, another folder, or delete this one"
        )


def _settings_file(root: Path, split: str) -> tuple[Path, dict | None]:
    path = root / UNFINISHED / f"{split}.settings.json"
    return path, json.loads(path.read_text()) if path.exists() else None


def _finished(root: Path) -> dict[str, Any]:
    path = root / "shards.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write_lists(root: Path, split: str, contents: Sequence[dict[str, list]]) -> None:
    folder = root / "images"
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{split}.ids.txt", "".join(f"{name}\n" for content in contents for name in content["ids"]))
    labels = np.array([label for content in contents for label in content["labels"]], np.int64)
    unfinished = folder / f".{split}.labels.{os.getpid()}.npy"
    np.save(unfinished, labels)
    os.replace(unfinished, folder / f"{split}.labels.npy")


def _write_metadata(root: Path, name: str, record_format: RecordFormat, finished: Mapping[str, Any]) -> None:
    """dataset_info.json and features.json, as TFDS reads them."""
    infos = []
    for split, entry in finished.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=root, split=split, filetype_suffix="array_record"
        )
        files = entry["files"].values()
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[file["records"] for file in files],
                num_bytes=sum(file["bytes"] for file in files),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=root, features=record_format.features, split_infos=infos, check_data=False, disable_shuffling=True
    )


def _record_bytes(record_format: RecordFormat) -> int:
    rows, columns = record_format.row_shape
    return rows * (columns * np.dtype(record_format.features["features"].np_dtype).itemsize + 16)


def _process_count(plan: Sequence[ShardTask]) -> int:
    todo = [task for task in plan if not is_written(task)]
    size = sum((task.stop - task.start) * _record_bytes(task.format) for task in todo)
    return 1 if size < PARALLEL_BYTES else max(1, min(os.cpu_count() or 1, len(todo)))
