"""A training set made of a folder of photographs, without labels: strongly warped views of a photo show the same thing.

An instance is a photo, or a scene of several photos where sub-folders or a list say so. Views are descriptors extracted
anew from a warped picture (`warping`). Some instances are set apart for validation and test; their queries are views, or the
photos themselves where a scene has several, against all photographs.

    photos-KEY/images/gallery/00017.jpg    photo 17 at the size that views are made of, or 00017.broken: why it is left out
    photos-KEY/images/SPLIT/00017_2.jpg    its view 2 in `validation_query`, `test_query` or, until its descriptors are there,
                                           `train`
    photos-KEY/photographs.json            scene and split of every photo
    photos-KEY/views.jpg                   some photos and their views, to look at
    photos-KEY/manifest.json               written last: a folder without it is unfinished, and the next run goes on with it

The set is a function of its settings, the backbone and the content of the photos, of which KEY is a hash.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ames_jax.data.neighbour_search import nearest
from ames_jax.data.neighbours import save_neighbours
from ames_jax.extraction.backbone import Backbone
from ames_jax.extraction.extracting import ExtractionJob, extract
from ames_jax.runtime import cache, files
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.fingerprints import content_of
from ames_jax.runtime.progress import Progress, write
from ames_jax.scenes.building import MANIFEST, WAIT_SECONDS, check, write_manifest
from ames_jax.scenes.photographs import Photographs, Plan, ViewSettings, photo_file, rendered_files, view_file
from ames_jax.scenes.rendering import Task, run_calls, run_task
from ames_jax.scenes.settings import TRANSFER
from ames_jax.scenes.warping import write_photo, write_sheet, write_views
from ames_jax.scenes.writing import TRAIN_NEIGHBOURS

VERSION = 2  # raise it with every change that alters pixels or splits
SIDE = 640  # longer side of pictures where the backbone does not say which it reads
REBUILD_HINT = "make it again with --config.data.rebuild=true"
SHEET = "views.jpg"
LEAST_PHOTOS = 8
CHUNK = 128  # pictures of a shard, which a killed run extracts again at most


def build_views(
    places: Sequence[str | Path],
    backbone: Backbone,
    settings: ViewSettings | None = None,
    root: Path | None = None,
    *,
    processes: int | None = None,
    rebuild: bool = False,
) -> Path:
    """The folder of a ready data set of photographs, made first where it is not there yet; a killed run goes on.

    Args:
      places: folders of photographs, and text lists of them.
      backbone: extracts the descriptors of photos and views.
      root: folder to keep sets in; by default AMES_JAX_HOME or the platform's cache directory.
      processes: processes that read and warp pictures; by default one per core.
      rebuild: make it again even where the set is there.

    Raises:
      UserError: too few photographs that can be read, a folder that is not there, a damaged set (says how to rebuild), or
        `root` cannot be written.
    """
    settings = settings or ViewSettings()
    _check_settings(settings)
    photographs = Photographs.find(places, settings.labels)
    folder = Path(root or cache.home()) / f"photos-{_key(photographs, backbone, settings)}"
    if (folder / MANIFEST).exists() and not rebuild:
        check(folder, REBUILD_HINT)
        return folder
    try:
        with files.lock(folder, cache.home(), WAIT_SECONDS):
            if rebuild:
                shutil.rmtree(folder, ignore_errors=True)
            if not (folder / MANIFEST).exists():  # else another process has made it meanwhile
                _make(folder, photographs, backbone, settings, processes or usable_cores())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error}); set AMES_JAX_HOME to a folder that is writable and has space"
        ) from error
    return folder


def _check_settings(settings: ViewSettings) -> None:
    for name in ("count", "queries"):
        if getattr(settings, name) < 1:
            raise UserError(f"--config.views.{name}={getattr(settings, name)}: expected 1 or more")
    if settings.rendered < 0:
        raise UserError(f"--config.views.rendered={settings.rendered}: expected 0 or more")
    if not 0 <= settings.strength <= 2:
        raise UserError(f"--config.views.strength={settings.strength}: expected 0 to 2")
    if not (settings.validation > 0 and settings.test > 0 and settings.validation + settings.test <= 0.8):
        raise UserError(
            f"--config.views.validation={settings.validation} and --config.views.test={settings.test}: expected shares "
            "above 0 that leave a fifth of the photographs to learn from"
        )


def _key(photographs: Photographs, backbone: Backbone, settings: ViewSettings) -> str:
    """Ten hexadecimal digits that change with all that the set is made of."""
    weights = [Path(file) for file in _values_of("weights", backbone.settings) if file]
    statistics = getattr(backbone, "statistics", None)  # of sift
    content = [VERSION, dataclasses.asdict(settings), backbone.settings, content_of(weights)]
    content += [statistics and statistics.fingerprint(), photographs.scenes, photographs.hashes]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _values_of(key: str, settings: dict[str, Any]) -> Iterator[Any]:
    yield settings.get(key)
    if settings.get("global_backbone"):
        yield from _values_of(key, settings["global_backbone"])


def _make(folder: Path, photographs: Photographs, backbone: Backbone, settings: ViewSettings, processes: int) -> None:
    whole = _read_photos(folder, photographs, backbone.settings.get("max_side", SIDE), processes)
    plan = Plan.make(photographs, whole, settings)
    write(str(plan))
    files.write_json(folder / "photographs.json", plan.facts())
    _make_views(folder, plan, processes)
    began, done = time.monotonic(), 0
    splits = plan.splits(folder)
    for name, images in splits.items():
        left = sum(len(other) for other in splits.values()) - done
        minutes = (time.monotonic() - began) / max(1, done) * left / 60
        if minutes > 1:
            write(f"{left:,} pictures to extract with {backbone.name}: about {minutes:.0f} minutes")
        extract(ExtractionJob(images=images, backbone=backbone, root=folder, split=name, chunk=CHUNK))
        done += len(images)
    _write_neighbours(folder, plan)
    write_sheet(folder / SHEET, plan.examples(folder))
    write(f"some of the views: {folder / SHEET}")
    write_manifest(folder)
    shutil.rmtree(folder / "images" / "train", ignore_errors=True)  # only its descriptors are read again


def _read_photos(folder: Path, photographs: Photographs, side: int, processes: int) -> list[int]:
    """Writes the photos at the size of views, and gives the rows of those that can be read."""
    names = [photo_file(folder, row) for row in range(len(photographs))]
    missing = [row for row, file in enumerate(names) if not (file.exists() or file.with_suffix(".broken").exists())]
    calls = [functools.partial(write_photo, photographs.paths[row], side, names[row]) for row in missing]
    _run(calls, processes, "reading", len(names))
    broken = {row: file.with_suffix(".broken") for row, file in enumerate(names) if not file.exists()}
    reasons = [file.read_text(encoding="utf-8") for file in broken.values()]
    whole = [row for row in range(len(names)) if row not in broken]
    if len(whole) < LEAST_PHOTOS:
        shutil.rmtree(folder)
        bad = f" and {len(broken)} that cannot be read, the first: {reasons[0]}" if broken else ""
        raise UserError(
            f"--config.photos: found {len(whole)} photographs{bad}; a re-ranker needs {LEAST_PHOTOS} to learn from, "
            "better some hundreds"
        )
    if broken:
        write(f"{len(broken)} photographs cannot be read and are left out, the first: {reasons[0]}")
    return whole


def _make_views(folder: Path, plan: Plan, processes: int) -> None:
    """Warps the views, and renders the scenes, that are not there yet.

    Backgrounds are borrowed from training photos of other scenes alone.
    """
    scenes, hashes, settings = plan.photographs.scenes, plan.photographs.hashes, plan.settings
    lenders = [row for row, stage in zip(plan.rows, plan.stage) if stage == "train"]
    views: dict[int, list[tuple[int, Path]]] = {}
    for row, split, number in plan.views():
        views.setdefault(row, []).append((number, view_file(folder, row, split, number)))
    calls = []
    for row, wanted in views.items():
        missing = [(number, file) for number, file in wanted if not file.exists()]
        if missing:
            others = [photo_file(folder, other) for other in lenders if scenes[other] != scenes[row]]
            key = (settings.seed, *hashes[row])
            photo = photo_file(folder, row)
            calls.append(functools.partial(write_views, photo, missing, others, key, settings.strength))
    _run(calls, processes, "warping", len(views))
    world, calls = dataclasses.replace(TRANSFER, seed=settings.seed), []
    for number in range(settings.rendered):
        paths = rendered_files(folder, number, settings)
        if not all(path.exists() for path in paths):
            calls.append(functools.partial(run_task, Task(world, number, 0, len(paths), paths)))
    _run(calls, processes, "rendering", settings.rendered, "scenes")


def _run(
    calls: Sequence[Callable[[], object]], processes: int, label: str, total: int, unit: str = "photographs"
) -> None:
    """Makes all the calls in working processes; progress counts towards `total` units."""
    with Progress(label, total, unit, done=total - len(calls)) as progress:
        for _ in progress.over(run_calls(calls, processes, "views")):
            pass


def _write_neighbours(folder: Path, plan: Plan) -> None:
    """The training set in itself, the ranking of all photos for each query, and the right ones."""
    vectors = {name: files.read_array(folder / "global" / f"{name}.npy") for name in plan.splits(folder)}
    train = vectors["train"]
    similarities, indices = nearest(train, train, min(TRAIN_NEIGHBOURS, len(train) - 1), exclude_self=True)
    save_neighbours(folder / "neighbours" / "train.train", similarities, indices, {"exclude_self": True})
    for stage in ("validation", "test"):
        queries, gallery = vectors[f"{stage}_query"], vectors["gallery"]
        similarities, indices = nearest(queries, gallery, len(gallery))
        save_neighbours(
            folder / "neighbours" / f"{stage}_query.gallery", similarities, indices, {"exclude_self": False}
        )
        files.write_json(folder / "ground_truth" / f"{stage}.json", plan.truth(stage))
