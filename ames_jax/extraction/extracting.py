"""A list of images → a split of a data set: shard by shard, resumable, shared by hosts; broken images are listed.

    ROOT/.unfinished/SPLIT/extraction.json    the images and the settings that the split is extracted with
    ROOT/.unfinished/SPLIT/SHARD.json .npy    beside a shard's receipt: sizes, broken images, and global descriptors

A shard counts as done when its receipt holds the broken images. What a killed run was at is begun again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.records import GEOMETRY, ImageRecord, RecordFormat
from ames_jax.data.shard_writing import (
    SHARD_BYTES,
    UNFINISHED,
    ShardTask,
    finish,
    plan_shards,
    verify_shard,
    write_shard,
)
from ames_jax.data.shards import read_about
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.extraction.images import crop, load_image
from ames_jax.extraction.listing import ImageFile, ImageFiles
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.runtime import cache
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.files import (
    lock,
    read_array,
    read_json,
    refuse_other,
    same_job,
    write_array,
    write_blocks,
    write_file,
    write_json,
)
from ames_jax.runtime.progress import Progress, write

ADVICE = "Use the same images and settings, another --split or --out, or delete it"
# Of the facts of a finished split, those that are known at its end.
FOUND = ("written", "broken")
# A host that ends together with another waits so long for it to write the metadata.
WAIT_SECONDS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """The images of a split, and where and how their descriptors are kept.

    Attributes:
      images: the list. backbone: the extractor.
      root: folder of the data set. split: name of the split.
      name: of the data set; by default the folder's. dtype: storage of local descriptors, see `RecordFormat`.
      skip_broken: leave images that cannot be read out of the data set instead of stopping.
      chunk: images per shard, which is what a killed run loses at most; by default what fills 512 MiB.
      process, processes: this host writes every `processes`-th shard, from `process` on; all hosts see `root`.
    """

    images: ImageFiles
    backbone: Backbone
    root: Path
    split: str = "images"
    name: str | None = None
    dtype: str = "float16"
    skip_broken: bool = False
    chunk: int | None = None
    process: int = 0
    processes: int = 1

    @property
    def facts_file(self) -> Path:
        """Where the facts of the finished split are."""
        return self.root / "images" / f"{self.split}.extracted.json"

    def facts(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before."""
        listed = [(file.id, file.label, file.box) for file in self.images.files]
        digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        return {"extraction": self.backbone.settings, "images": len(self.images), "list": digest}


@dataclasses.dataclass(frozen=True)
class LoadedImage:
    """A picture in the backbone's size, the share of the file that it is (offset, size), and the file's width, height."""

    pixels: np.ndarray
    share: np.ndarray
    size: tuple[int, int]


def extract(job: ExtractionJob) -> dict[str, Any] | None:
    """Writes what is left of the split and gives its facts; None while other hosts are at work on their shards.

    Facts: "written", the number of images; "broken", why an image was left out, by id; and those of `ExtractionJob.facts`.

    Raises:
      UserError: the folder holds descriptors of another backbone, or this split of other images; an image is broken and
        such images are not skipped, or none can be read; another process is at it.
    """
    own = job.split if job.processes == 1 else f"{job.split}-{job.process}"
    with lock(job.root / own, cache.home()), requires("tensorflow-datasets array-record", "writing shards"):
        _check_folder(job)
        with _in_turn(job):
            tasks = _plan(job)
        _write_shards(job, tasks)
        if not all(_is_done(job, task) for task in tasks):
            return None
        with _in_turn(job):
            _finish(job, _plan(job))  # no shards where another host was first
    if job.processes > 1:
        shutil.rmtree(job.root / UNFINISHED / "locks", ignore_errors=True)
        with suppress(OSError):  # another split is unfinished
            (job.root / UNFINISHED).rmdir()
    return read_json(job.facts_file)


def _check_folder(job: ExtractionJob) -> None:
    """Refuses a folder of other descriptors; keeps there what a query needs beside the settings: of sift, its statistics."""
    if job.root.exists() and not job.root.is_dir():
        raise UserError(f"--out={job.root} is a file; expected the folder of a data set")
    about = read_about(job.root)
    if about and about.get("extraction") != job.backbone.settings:
        raise UserError(
            f"--out={job.root} holds descriptors made with {about.get('extraction') or about.get('backbone')}, now "
            f"{job.backbone.settings}; use the same settings, or another folder"
        )
    statistics, path = getattr(job.backbone, "statistics", None), job.root / STATISTICS_FILE
    if statistics is None:
        return
    if not path.exists():
        statistics.save(path)
    elif SiftStatistics.load(path).fingerprint() != statistics.fingerprint():
        raise UserError(f"{path}: other SIFT statistics than those given; use --statistics={path}, or another --out")


def _in_turn(job: ExtractionJob) -> Any:
    """Alone among the processes that write to the data set; on other hosts too, where several share it."""
    home = cache.home() if job.processes == 1 else job.root / UNFINISHED
    return lock(job.root / "shards.json", home, WAIT_SECONDS)


def _plan(job: ExtractionJob) -> list[ShardTask]:
    """The shards of the split, and the folder made ready for them; none where the split is finished."""
    folder = job.root / UNFINISHED / job.split
    if job.facts_file.exists():
        before = read_json(job.facts_file)
        refuse_other(f"{job.root} {job.split}", before, job.facts(), free=FOUND, advice=ADVICE)
        if not folder.exists():
            return []
    old = job.root / ".extracted" / job.split
    if old.exists():
        write(f"{old}: begun by an earlier version, which kept unfinished work in another way; the split is begun anew")
        shutil.rmtree(old, ignore_errors=True)
        with suppress(OSError):  # another split
            old.parent.rmdir()
    width, count = job.backbone.width, job.backbone.descriptors
    size = len(job.images) * RecordFormat(count, width, job.dtype, tuple(GEOMETRY)).record_bytes
    shards = math.ceil(len(job.images) / job.chunk if job.chunk else size / SHARD_BYTES)
    name = read_about(job.root).get("name") or job.name or _data_set_name(job.root)
    settings = {"descriptors": count, "width": width, "dtype": job.dtype, "shards": max(shards, job.processes)}
    tasks = plan_shards(job.root, name, {job.split: _ListedImages(job.images.files)}, **settings)
    if tasks:
        same_job(folder / "extraction.json", job.facts(), advice=ADVICE)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # left where a run was killed at its very end
    return tasks


class _ListedImages(Sequence[ImageRecord]):
    """The images before they are extracted: ids and labels, and which geometry will come."""

    def __init__(self, files: Sequence[ImageFile]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> ImageRecord:
        file, none = self._files[row], np.zeros(0, np.float32)
        return ImageRecord(file.id, file.label, DescriptorSet(none[None], None, none.reshape(0, 2), none, none))


def _is_done(job: ExtractionJob, task: ShardTask) -> bool:
    """Whether a shard and all that belongs to it is there; broken images count as missing unless they are skipped."""
    broken = read_json(task.receipt).get("broken") if task.is_written() else None
    return broken is not None and (job.skip_broken or not broken)


def _write_shards(job: ExtractionJob, tasks: Sequence[ShardTask]) -> None:
    """Those of this host that are not there yet."""
    own = tasks[job.process :: job.processes]
    missing = [task for task in own if not _is_done(job, task)]
    total, left = (sum(task.stop - task.start for task in some) for some in (own, missing))
    with (
        ThreadPoolExecutor(usable_cores(), "load") as threads,
        Progress(job.backbone.name, total, "images", done=total - left) as progress,
    ):
        batches = _loaded(job, [rows for task in missing for rows in _batches(job, task)], threads)
        for task in missing:
            _write(job, task, batches, progress)


def _batches(job: ExtractionJob, task: ShardTask) -> list[range]:
    """The images of a shard, as many at a time as suit the backbone."""
    starts = range(task.start, task.stop, job.backbone.together)
    return [range(start, min(start + job.backbone.together, task.stop)) for start in starts]


def _loaded(
    job: ExtractionJob, batches: Sequence[range], threads: ThreadPoolExecutor
) -> Iterator[list[LoadedImage | str]]:
    """The images of each batch, read by threads while the batch before is extracted; a broken one as its reason."""

    def start(rows: range) -> list[Future]:
        return [threads.submit(load, job.images.files[row], job.backbone) for row in rows]

    ahead = start(batches[0]) if batches else []
    for following in [*batches[1:], None]:
        current, ahead = ahead, [] if following is None else start(following)
        yield [_result(future, job.skip_broken) for future in current]


def load(file: ImageFile, backbone: Backbone) -> LoadedImage:
    """Reads one image, cut to its box; raises UserError where it is broken."""
    image = load_image(file.path)
    size = image.shape[1], image.shape[0]
    share = np.float32([[0, 0], [1, 1]])
    if file.box is not None:
        try:
            image, share = crop(image, file.box)
        except UserError as error:
            raise UserError(f"{file.path}: {error}") from error
    return LoadedImage(backbone.fit(image), share, size)


def _result(future: Future, skip: bool) -> LoadedImage | str:
    try:
        return future.result()
    except UserError as error:
        if skip:
            return str(error)
        raise UserError(f"{error}; or leave such images out with --skip-broken") from error


def _write(job: ExtractionJob, task: ShardTask, batches: Iterator[list[LoadedImage | str]], progress: Progress) -> None:
    """One shard and what belongs to it; takes its images from the batches."""
    global_descriptors, sizes, broken = [np.zeros((0, job.backbone.global_width), np.float32)], [], {}

    def records() -> Iterator[ImageRecord]:
        for rows in _batches(job, task):
            images = list(zip((job.images.files[row] for row in rows), next(batches)))
            broken.update({file.id: why for file, why in images if isinstance(why, str)})
            whole = [(file, image) for file, image in images if isinstance(image, LoadedImage)]
            extracted = job.backbone.extract([image.pixels for _, image in whole])
            for (file, image), found in zip(whole, extracted):
                xy = image.share[0] + image.share[1] * found.local.xy
                features = found.local.features.astype(np.float16)  # int8 is made of these, too
                yield ImageRecord(file.id, file.label, dataclasses.replace(found.local, features=features, xy=xy))
                global_descriptors.append(found.global_descriptor[None])
                sizes.append(image.size)
            progress.update(len(rows))

    write_shard(task, records())
    verify_shard(task)
    write_array(task.receipt.with_suffix(".npy"), np.concatenate(global_descriptors))
    write_json(task.receipt, {**read_json(task.receipt), "sizes": sizes, "broken": broken})


def _finish(job: ExtractionJob, tasks: Sequence[ShardTask]) -> None:
    """Makes the shards a split of the data set."""
    if not tasks:
        return
    receipts = [read_json(task.receipt) for task in tasks]
    written = sum(receipt["records"] for receipt in receipts)
    broken = {name: why for receipt in receipts for name, why in receipt["broken"].items()}
    if not written:
        raise UserError(f"none of the {len(broken)} images can be read; the first: {next(iter(broken.values()))}")
    blocks = (read_array(task.receipt.with_suffix(".npy")) for task in tasks)
    shape = (written, job.backbone.global_width)
    write_blocks(job.root / "global" / f"{job.split}.npy", blocks, np.float32, shape)
    lists = job.root / "images"
    sizes = np.array([size for receipt in receipts for size in receipt["sizes"]], np.int64)
    write_array(lists / f"{job.split}.sizes.npy", sizes)
    if job.images.label_names:
        write_file(lists / f"{job.split}.label_names.txt", "".join(f"{name}\n" for name in job.images.label_names))
    if broken:
        write_file(lists / f"{job.split}.broken.txt", "".join(f"{name}\t{why}\n" for name, why in broken.items()))
    folders = {**read_about(job.root).get("images", {}), job.split: str(job.images.root.resolve())}
    about = {"name": tasks[0].name, "backbone": job.backbone.name, "width": job.backbone.width}
    about |= {"global": job.backbone.global_name, "extraction": job.backbone.settings, "images": folders}
    write_json(job.root / "about.json", about)
    write_json(job.facts_file, {**job.facts(), "written": written, "broken": broken})
    finish(tasks)


def _data_set_name(root: Path) -> str:
    """TFDS wants lower case, digits and underscores, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "_", root.resolve().name.lower()).strip("_")
    return name if name[:1].isalpha() else f"images_{name}".rstrip("_")
