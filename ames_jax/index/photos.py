"""A folder of pictures straight to an index, and an index brought up to date with a folder; extraction is inside.

.NAME.extraction/HASH/    beside the index NAME, while it works: what is extracted of these pictures; a run of the same
                          pictures that was killed goes on with it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ames_jax.data.records import GEOMETRY, RecordFormat
from ames_jax.extraction.backbone import Backbone
from ames_jax.extraction.extracting import ExtractionJob, extract
from ames_jax.extraction.listing import ImageFiles
from ames_jax.extraction.loading import LoadedImage, load
from ames_jax.extraction.stamps import stamps_of
from ames_jax.index.building import KILOBYTE, Descriptors, build_index, check_budget, refuse_taken, workspace
from ames_jax.index.changes import change, changing
from ames_jax.index.collection import SearchIndex
from ames_jax.index.first_stage import untrained
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.parts import NewImages
from ames_jax.runtime.cache import home
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock
from ames_jax.runtime.progress import write

# Images of a shard, which a killed run loses at most.
CHUNK = 128
# From so many images on, this many are extracted first, to tell how long all take.
MANY, SAMPLE = 64, 8


@dataclasses.dataclass(frozen=True)
class SyncReport:
    """Changes that brought an index up to date: numbers of images, and why images were left out, by id.

    `new` are not in the index before, with content that it does not hold either; `changed` have another content; `moved` have
    another id, or folder, and a content that the index knows; `removed` are no longer in the folder.
    """

    new: int
    changed: int
    moved: int
    removed: int
    unchanged: int
    broken: dict[str, str]

    def __str__(self) -> str:
        counts = {name: value for name, value in vars(self).items() if name != "broken"}
        text = ", ".join(f"{value:,} {name}" for name, value in counts.items())
        return text + "".join(f"\nleft out {name}: {why}" for name, why in self.broken.items())


def index_photos(
    path: str | Path,
    images: ImageFiles,
    backbone: Backbone,
    chosen: ChosenModel,
    budget: int = KILOBYTE,
    global_index: str = "flat",
    skip_broken: bool = False,
) -> tuple[SearchIndex, dict[str, str]]:
    """Extracts pictures and builds their index; a run that was killed goes on. Returns it, and why images were left out.

    Arguments as of `building.build_index`; skip_broken: leave out pictures that cannot be read instead of stopping.

    Raises:
      UserError: as `build_index`; a picture cannot be read; the disk has too little space; another process is at it.
    """
    path = Path(path)
    refuse_taken(path)
    statistics = getattr(backbone, "statistics", None)  # of sift
    found = {"backbone": backbone.name, "width": backbone.width, "global": backbone.global_name}
    # Before hours of extraction:
    chosen.check(found, statistics and statistics.fingerprint())
    if chosen.model is not None:
        check_budget(budget, chosen.model.config.bits)
    untrained(global_index, len(images), backbone.global_width)
    with lock(workspace(path), home()):
        descriptors, broken = _extracted(
            path, images, stamps_of([file.path for file in images.files]), backbone, budget, skip_broken
        )
        if descriptors is None:
            raise UserError(
                f"none of the {len(images)} pictures of {images.root} can be read: {next(iter(broken.values()))}"
            )
        index = build_index(path, descriptors, chosen, budget, global_index)
        shutil.rmtree(workspace(path), ignore_errors=True)
    return index, broken


def sync_photos(path: str | Path, images: ImageFiles, *, remove: bool = True, skip_broken: bool = False) -> SyncReport:
    """Brings an index up to date with a folder, so that it holds the pictures that are there now, under their present ids.

    New and changed pictures are extracted as those of the index were; content that the index knows is not extracted again. A
    picture counts as unchanged while path, size and time of change are the same.

    Args:
      remove: images that are not in the folder leave the index, but for those uploaded to a server, whose pictures lie in
        the index itself.

    Raises:
      UserError: no index, a picture cannot be read, the disk has too little space, or another process is at it; if `remove`
        is False, an id that stands for another picture which is still there.
    """
    path = Path(path)
    with lock(workspace(path), home()):
        while True:  # again where another process changed the index meanwhile
            index = SearchIndex.open(path)
            plan = _Plan.make(index, images, remove)
            wanted = dataclasses.replace(images, files=[images.files[place] for place in plan.extracted])
            descriptors, broken = None, {}
            if len(wanted):
                backbone, budget = index.open_backbone(), index.facts["budget"]
                descriptors, broken = _extracted(
                    path, wanted, plan.stamps[plan.extracted], backbone, budget, skip_broken
                )
            with changing(path) as now:
                if now.facts != index.facts:
                    continue
                plan.apply(now, str(images.root.resolve()), descriptors)
            shutil.rmtree(workspace(path), ignore_errors=True)
            return plan.report(broken)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Work that is left to do: the pictures of a folder, by their place in its list, against the rows of an index.

    copied: places whose content the index holds, in `rows`; extracted: places that are to be extracted; kept: rows that stay.
    """

    index: SearchIndex
    names: list[str]
    stamps: np.ndarray
    kept: np.ndarray
    copied: list[int]
    rows: list[int]
    extracted: list[int]

    @classmethod
    def make(cls, index: SearchIndex, images: ImageFiles, remove: bool) -> _Plan:
        """Compares size and time of every picture, and the content of those that differ."""
        known, row_of = index.stamps(np.arange(len(index))), {name: row for row, name in enumerate(index.ids)}
        paths = [file.path for file in images.files]
        stamps, folder = stamps_of(paths, hashed=False), images.root.resolve()
        kept, others = np.zeros(len(index), bool), []
        uploaded = _lie_within(index)
        for place, file in enumerate(images.files):
            row = row_of.get(file.id)
            same = row is not None and known[row, 2:].any() and (known[row, :2] == stamps[place, :2]).all()
            if same and index.picture(row) == folder / file.id:
                kept[row], stamps[place] = True, known[row]
            else:
                others.append(place)
                if row is not None and (uploaded[row] or not remove):
                    _refuse_clash(index, row, folder / file.id)
        stamps[others] = stamps_of([paths[place] for place in others])
        content = {(row[0], *row[2:]): number for number, row in enumerate(known.tolist()) if any(row[2:])}
        found = {}
        for place in others:
            size, _, *digest = stamps[place].tolist()
            row = row_of.get(images.files[place].id)
            same = row is not None and known[row, [0, 2, 3]].tolist() == [size, *digest] and any(digest)
            found[place] = row if same else content.get((size, *digest))
        copied = [place for place in others if found[place] is not None]
        extracted = [place for place in others if found[place] is None]
        names = [file.id for file in images.files]
        replaced = [row_of[names[place]] for place in others if names[place] in row_of]
        stay = np.ones(len(index), bool) if not remove else uploaded
        stay[replaced] = False
        kept |= stay
        return cls(index, names, stamps, kept, copied, [found[place] for place in copied], extracted)

    def apply(self, index: SearchIndex, folder: str, descriptors: Descriptors | None) -> None:
        """Changes the index; a picture that turned out broken is left out, and so is the image that had its id."""
        added, removed = [], np.flatnonzero(~self.kept)
        if self.copied:
            names, place = [self.names[place] for place in self.copied], {"folder": folder, "suffix": ""}
            copies = NewImages.of_index(index, np.array(self.rows))
            stamps = self.stamps[self.copied]
            added.append(dataclasses.replace(copies, ids=names, stamps=stamps, pictures=[(len(names), place)]))
        if descriptors is not None:
            added.append(descriptors.images())
        if added or len(removed):
            change(index, added, removed)

    def report(self, broken: dict[str, str]) -> SyncReport:
        """The report of what `apply` did."""
        before, now = set(self.index.ids), set(self.names)
        extracted = [self.names[place] for place in self.extracted if self.names[place] not in broken]
        pairs = [(row, self.index.ids[row] == self.names[place]) for place, row in zip(self.copied, self.rows)]
        touched = {row for row, same_id in pairs if same_id}
        copies = sum(not same_id and (row in touched or bool(self.kept[row])) for row, same_id in pairs)
        sources = set(self.rows)
        gone = [
            row for row in np.flatnonzero(~self.kept).tolist() if self.index.ids[row] not in now and row not in sources
        ]
        return SyncReport(
            new=copies + sum(name not in before for name in extracted),
            changed=sum(name in before for name in extracted),
            moved=len(self.copied) - len(touched) - copies,
            removed=len(gone) + sum(name in before for name in broken),
            unchanged=int(self.kept.sum()) + len(touched),
            broken=broken,
        )


def _lie_within(index: SearchIndex) -> np.ndarray:
    """bool [N], the images whose pictures lie in the index's own folder: uploads to a server, which no other folder holds."""
    runs = index.runs_of_pictures(np.arange(len(index)))
    path = index.path.resolve()
    within = [place is not None and Path(place["folder"]).resolve().is_relative_to(path) for _, place in runs]
    return np.repeat(np.array(within, bool), [count for count, _ in runs])


def _refuse_clash(index: SearchIndex, row: int, picture: Path) -> None:
    held = index.picture(row)
    if held is not None and held != picture and held.is_file():
        raise UserError(
            f"{picture}: {index.ids[row]!r} is in the index already, as another picture ({held}); index a folder that "
            "holds both, so that their ids differ"
        )


def _extracted(
    path: Path, images: ImageFiles, stamps: np.ndarray, backbone: Backbone, budget: int, skip_broken: bool
) -> tuple[Descriptors | None, dict[str, str]]:
    """Descriptors of the pictures, kept beside the index until it is made; None where all are broken; and the broken ones."""
    statistics = getattr(backbone, "statistics", None)  # of sift
    settings = [backbone.settings, statistics and statistics.fingerprint()]
    job_facts = [*settings, CHUNK, [file.id for file in images.files], stamps.tolist()]
    digest = hashlib.sha256(json.dumps(job_facts).encode()).hexdigest()[:16]
    root = workspace(path) / digest / path.stem  # the data set takes the name of the index
    for other in workspace(path).glob("*"):
        if other.name != digest:
            shutil.rmtree(other, ignore_errors=True)
    _forecast(path, images, backbone, budget)
    job = ExtractionJob(images=images, backbone=backbone, root=root, skip_broken=skip_broken, chunk=CHUNK)
    try:
        broken = extract(job)["broken"]
    except UserError:
        # The only error that is none here: nothing is left when broken pictures are left out.
        reasons = {file.id: load(file, backbone, skip_broken) for file in images.files[:CHUNK]} if skip_broken else {}
        if len(reasons) < len(images) or any(isinstance(reason, LoadedImage) for reason in reasons.values()):
            raise
        return None, reasons
    descriptors, place_of = Descriptors.open(root), {file.id: place for place, file in enumerate(images.files)}
    places = [place_of[name] for name in descriptors.ids]
    return dataclasses.replace(descriptors, stamps=stamps[places]), broken


def _forecast(path: Path, images: ImageFiles, backbone: Backbone, budget: int) -> None:
    """Says how long extraction takes and how many bytes; raises UserError where the disk has fewer."""
    shape = RecordFormat(backbone.descriptors, backbone.width, "float16", tuple(GEOMETRY))
    stays = len(images) * (budget + 4 * backbone.global_width)
    work = len(images) * (shape.record_bytes + 4 * backbone.global_width)
    there = sum(file.stat().st_size for file in workspace(path).rglob("*") if file.is_file())
    parent = next(place for place in path.absolute().parents if place.exists())
    free = shutil.disk_usage(parent).free
    sizes = f"{(work + stays) / 1e9:,.2f} GB while it works, then {stays / 1e9:,.3f} GB"
    if work + stays - there > free:
        raise UserError(
            f"{path}: {len(images):,} pictures take {sizes}, and {parent} has {free / 1e9:,.2f} GB free; make room, or "
            "name a place on another disk"
        )
    if len(images) < MANY:
        return
    sample = images.files[:: len(images) // SAMPLE][:SAMPLE]
    for part in (sample[:1], sample):  # the first compiles
        start = time.perf_counter()
        with ThreadPoolExecutor(usable_cores()) as threads:
            loaded = [
                image
                for image in threads.map(lambda file: load(file, backbone, True), part)
                if not isinstance(image, str)
            ]
        if loaded:
            backbone.extract([image.pixels for image in loaded])
        seconds = (time.perf_counter() - start) / len(part) * len(images)
    minutes, seconds = divmod(round(seconds), 60)
    write(f"{len(images):,} pictures to extract with {backbone.name}: about {minutes} min {seconds} s, {sizes}")
