"""A list of images → a split of a data set: shard by shard, resumable, shared by hosts; broken images are listed.

    ROOT/.unfinished/SPLIT/extraction.json    the images and the settings that the split is extracted with
    ROOT/.unfinished/SPLIT/SHARD.json .npy    beside a shard's receipt: sizes, broken images, and global descriptors
    ROOT/.unfinished/SPLIT/SHARD.stamps.npy   size, time and hash of the picture files; ROOT/images/SPLIT.stamps.npy in the end

A shard counts as done when its receipt holds the broken images and its pictures are still those that it was made of. What
a killed run was at is begun again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data import shard_writing
from ames_jax.data.records import GEOMETRY, ImageRecord, RecordFormat
from ames_jax.data.shard_writing import ShardTask
from ames_jax.data.shards import read_about, write_about
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.extraction.listing import ImageFiles
from ames_jax.extraction.loading import LoadedImage, load
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.extraction.stamps import changed_rows, stamps_of
from ames_jax.runtime import cache, files
from ames_jax.runtime.checksums import checksum, recorded, sealed
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.progress import Progress, write

ADVICE = "Use the same images and settings, another --split or --out, or delete it"
# Of a finished split; the last ones are known at its end alone. boxes: images of which a part alone was extracted.
FACTS = {"extraction": dict, "images": int, "list": str, "written": int, "broken": dict, "boxes?": int}
FOUND = ("written", "broken", "boxes")
# What extraction adds to a shard's receipt, and the number of records.
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
        """The file of the finished split's facts."""
        return self.root / "images" / f"{self.split}.extracted.json"

    def facts(self) -> dict[str, Any]:
        """The settings that a run that goes on must have in common with the one before."""
        listed = [(file.id, file.label, file.box) for file in self.images.files]
        digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        return {"extraction": self.backbone.settings, "images": len(self.images), "list": digest}

    @property
    def stamps_file(self) -> Path:
        """The file of `stamps_of` the pictures that the finished split was made of."""
        return self.root / "images" / f"{self.split}.stamps.npy"

    def paths(self, start: int = 0, stop: int | None = None) -> list[Path]:
        """The files of the images of these rows."""
        return [file.path for file in self.images.files[start:stop]]


def extract(job: ExtractionJob, extra_bytes: int = 0) -> dict[str, Any] | None:
    """Writes what is left of the split and gives its facts; None while other hosts are at work on their shards.

    extra_bytes: what will be written after it.

    Facts: "written", the number of images; "broken", why an image was left out, by id; and those of `ExtractionJob.facts`.

    Raises:
      UserError: the folder holds descriptors of another backbone, or this split of other images; an image is broken and
        such images are not skipped, or none can be read; another process is at it; the disk has not the space.
    """
    own = job.split if job.processes == 1 else f"{job.split}-{job.process}"
    with files.lock(job.root / own, cache.home()), requires("tensorflow-datasets array-record", "writing shards"):
        _check_folder(job)
        with _in_turn(job):
            tasks = _plan(job)
        needed = sum(shard_writing.bytes_left(tasks[job.process :: job.processes]))
        files.need_space(job.root, needed + extra_bytes)
        _write_shards(job, tasks)
        if not all(_is_done(job, task) for task in tasks):
            return None
        with Progress("completing the data set"), _in_turn(job):
            _finish(job, _plan(job))  # no shards where another host was first
    if job.processes > 1:
        shard_writing.clear(job.root / shard_writing.UNFINISHED / "locks")
    return files.read_json(job.facts_file, keys=FACTS)


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
    home = cache.home() if job.processes == 1 else job.root / shard_writing.UNFINISHED
    return files.lock(job.root / "shards.json", home, WAIT_SECONDS)


def _plan(job: ExtractionJob) -> list[ShardTask]:
    """The shards of the split, and the folder made ready for them; none where the split is finished."""
    folder = job.root / shard_writing.UNFINISHED / job.split
    if job.facts_file.exists():
        before = files.read_json(job.facts_file, keys=FACTS)
        files.refuse_other(f"{job.root} {job.split}", before, job.facts(), free=FOUND, advice=ADVICE)
        if not folder.exists():
            shard_writing.clear(folder)  # an empty one above it, where a run was killed at its very end
            _refuse_changed(job)
            return []
    old = job.root / ".extracted" / job.split
    if old.exists():
        write(f"{old}: begun by an earlier version, which kept unfinished work in another way; the split is begun anew")
        shard_writing.clear(old)
    width, count = job.backbone.width, job.backbone.descriptors
    size = len(job.images) * RecordFormat(count, width, job.dtype, tuple(GEOMETRY)).record_bytes
    shards = math.ceil(len(job.images) / job.chunk if job.chunk else size / shard_writing.SHARD_BYTES)
    name = read_about(job.root).get("name") or job.name or _data_set_name(job.root)
    settings = {"descriptors": count, "width": width, "dtype": job.dtype, "shards": max(shards, job.processes)}
    none = np.zeros(0, np.float32)
    nothing = DescriptorSet(none[None], None, none.reshape(0, 2), none, none)  # tells which geometry will come
    listed = [ImageRecord(file.id, file.label, nothing) for file in job.images.files]
    tasks = shard_writing.plan_shards(job.root, name, {job.split: listed}, **settings)
    if tasks:
        files.same_job(folder / "extraction.json", job.facts(), advice=ADVICE)
    else:
        shard_writing.clear(folder)
    return tasks


def _refuse_changed(job: ExtractionJob) -> None:
    """Raises UserError where pictures of the finished split were replaced; earlier versions did not keep their stamps."""
    if not job.stamps_file.exists():
        return
    changed = changed_rows(job.stamps_file, job.paths())
    if len(changed):
        raise UserError(
            f"{job.root} {job.split}: {len(changed)} pictures are others than those that were extracted, the first "
            f"{job.images.files[changed[0]].path}. {ADVICE}"
        )


def _is_done(job: ExtractionJob, task: ShardTask) -> bool:
    """True if a shard and all that belongs to it is there; broken images count as missing unless they are skipped."""
    facts, sums = task.facts() if task.is_written() else {}, _sums(task)
    if "broken" not in facts or (facts["broken"] and not job.skip_broken) or facts.get("arrays", sums) != sums:
        return False
    return not len(changed_rows(_stamps_file(task), job.paths(task.start, task.stop)))


def _stamps_file(task: ShardTask) -> Path:
    return task.receipt.with_suffix(".stamps.npy")


def _sums(task: ShardTask) -> list[int | None]:
    """Checksums of the arrays beside a receipt."""
    arrays = _stamps_file(task), task.receipt.with_suffix(".npy")
    return [checksum(path) if path.is_file() else None for path in arrays]


def _write_shards(job: ExtractionJob, tasks: Sequence[ShardTask]) -> None:
    """Those of this host that are not there yet."""
    own = tasks[job.process :: job.processes]
    missing = [task for task in own if not _is_done(job, task)]
    total, left = (sum(task.stop - task.start for task in some) for some in (own, missing))
    with (
        ThreadPoolExecutor(usable_cores(), "load") as threads,
        Progress(job.backbone.name, total, "images", done=total - left) as progress,
    ):
        rows = (row for task in missing for row in range(task.start, task.stop))
        images = _loaded(job, rows, threads)
        for task in missing:
            _write(job, task, images, progress)


def _loaded(job: ExtractionJob, rows: Iterable[int], threads: ThreadPoolExecutor) -> Iterator[LoadedImage | str]:
    """The images in their order, read by threads while others are extracted; a broken one as its reason."""
    ahead: deque[Future] = deque()
    for row in rows:
        ahead.append(threads.submit(load, job.images.files[row], job.backbone, job.skip_broken))
        if len(ahead) > 2 * job.backbone.together:
            yield ahead.popleft().result()
    yield from (future.result() for future in ahead)


def _write(job: ExtractionJob, task: ShardTask, loaded: Iterator[LoadedImage | str], progress: Progress) -> None:
    """One shard and what belongs to it; takes its images from the loaded ones."""
    global_descriptors, sizes, broken = [np.zeros((0, job.backbone.global_width), np.float32)], [], {}

    def records() -> Iterator[ImageRecord]:
        for start in range(task.start, task.stop, job.backbone.together):
            listed = job.images.files[start : min(start + job.backbone.together, task.stop)]
            images = list(zip(listed, loaded))
            broken.update({file.id: image for file, image in images if isinstance(image, str)})
            whole = [(file, image) for file, image in images if isinstance(image, LoadedImage)]
            extracted = job.backbone.extract([image.pixels for _, image in whole])
            for (file, image), found in zip(whole, extracted):
                xy = image.share[0] + image.share[1] * found.local.xy
                features = found.local.features.astype(np.float16)  # int8 is made of these, too
                yield ImageRecord(file.id, file.label, dataclasses.replace(found.local, features=features, xy=xy))
                global_descriptors.append(found.global_descriptor[None])
                sizes.append(image.size)
            progress.update(len(listed))

    files.write_array(_stamps_file(task), stamps_of(job.paths(task.start, task.stop)))
    shard_writing.write_shard(task, records())
    shard_writing.verify_shard(task)
    files.write_array(task.receipt.with_suffix(".npy"), np.concatenate(global_descriptors))
    files.write_json(task.receipt, sealed({**task.facts(), "sizes": sizes, "broken": broken, "arrays": _sums(task)}))


def _finish(job: ExtractionJob, tasks: Sequence[ShardTask]) -> None:
    """Makes the shards a split of the data set."""
    if not tasks:
        return
    receipts = [task.facts() for task in tasks]
    written = sum(receipt["records"] for receipt in receipts)
    broken = {name: why for receipt in receipts for name, why in receipt["broken"].items()}
    if not written:
        raise UserError(f"none of the {len(broken)} images can be read; the first: {next(iter(broken.values()))}")
    blocks = (files.read_array(task.receipt.with_suffix(".npy")) for task in tasks)
    shape = (written, job.backbone.global_width)
    vectors = job.root / "global" / f"{job.split}.npy"
    with recorded(vectors.parent, vectors.name):
        files.write_blocks(vectors, blocks, np.float32, shape)
    lists = job.root / "images"
    sizes = np.array([size for receipt in receipts for size in receipt["sizes"]], np.int64)
    with recorded(lists, f"{job.split}.sizes.npy", job.stamps_file.name):
        files.write_array(lists / f"{job.split}.sizes.npy", sizes)
        files.write_array(job.stamps_file, np.concatenate([files.read_array(_stamps_file(task)) for task in tasks]))
    if names := "".join(f"{name}\n" for name in job.images.label_names or ()):
        files.write_file(lists / f"{job.split}.label_names.txt", names)
    if broken:
        files.write_file(lists / f"{job.split}.broken.txt", "".join(f"{name}\t{why}\n" for name, why in broken.items()))
    folders = {**read_about(job.root).get("images", {}), job.split: str(job.images.root.resolve())}
    about = {"name": tasks[0].name, "backbone": job.backbone.name, "width": job.backbone.width}
    about |= {"global": job.backbone.global_name, "extraction": job.backbone.settings, "images": folders}
    about["input"] = getattr(job.backbone, "seen", {})
    write_about(job.root, about)
    boxes = sum(file.box is not None for file in job.images.files)
    with recorded(lists, job.facts_file.name):
        files.write_json(job.facts_file, {**job.facts(), "written": written, "broken": broken, "boxes": boxes})
    shard_writing.finish(tasks)


def _data_set_name(root: Path) -> str:
    """TFDS wants lower case, digits and underscores, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "_", root.resolve().name.lower()).strip("_")
    return name if name[:1].isalpha() else f"images_{name}".rstrip("_")
