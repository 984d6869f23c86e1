"""Builds a rendered data set: splits, photos, descriptors, and a folder in the cache that is whole or not there."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ames_jax.extraction.keypoints import Keypoints
from ames_jax.runtime import cache
from ames_jax.runtime.checksums import checksum, compare
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock, whole_folder
from ames_jax.runtime.progress import Progress
from ames_jax.scenes.rendering import Task, run_calls, run_task
from ames_jax.scenes.settings import Settings, preset
from ames_jax.scenes.writing import write_set

MANIFEST = "manifest.json"
REBUILD_HINT = "rebuild it with --config.data.rebuild=true or `python -m ames_jax.prepare scenes --rebuild`"
# A second process waits so long for the one that builds the same set.
WAIT_SECONDS = 3600
# Numbers of a stage's landmarks start here: the stages share no landmark.
FIRST_LANDMARK = {"train": 0, "validation": 1_000_000, "test": 2_000_000}


def build(
    settings: Settings | str = "landmarks",
    root: Path | None = None,
    *,
    processes: int | None = None,
    rebuild: bool = False,
) -> Path:
    """The folder of a ready data set, built first where it is not there yet.

    Args:
      settings: what to build, or the name of a preset; another content has another folder.
      root: folder to keep built sets in; by default AMES_JAX_HOME or the platform's cache directory.
      processes: rendering processes; by default one per core that this process may use.
      rebuild: build again even where the set is there.

    Raises:
      UserError: when there is no such preset, a file of the built set is missing or damaged (named, with how to rebuild),
        or `root` cannot be written.
    """
    settings = preset(settings) if isinstance(settings, str) else settings
    folder = Path(root or cache.home()) / f"{settings.folder}-{settings.key()}"
    if folder.exists() and not rebuild:
        check(folder)
        return folder
    try:
        with ExitStack() as stack:
            with Progress(f"waiting for the process that builds {folder}"):
                stack.enter_context(lock(folder, cache.home(), WAIT_SECONDS))
            if rebuild or not folder.exists():  # else another process has built it meanwhile
                target = stack.enter_context(whole_folder(folder, replace=rebuild))
                _fill(target, settings, processes)
                write_manifest(target)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error}); set AMES_JAX_HOME to a folder that is writable and has space"
        ) from error
    return folder


def _fill(target: Path, settings: Settings, processes: int | None) -> None:
    parts = splits(settings)
    tasks = [task for part in parts for task in part.tasks(settings, target / "images")]
    names = [part.name for part in parts for _ in range(part.landmarks)]
    keypoints: dict[str, list[Keypoints]] = {part.name: [] for part in parts}
    total = sum(task.views for task in tasks)
    with Progress(f"building {settings.name}", total, "photos") as bar:
        made = run_calls([partial(run_task, task) for task in tasks], processes, settings.name)
        for photos, name in zip(made, names, strict=True):
            keypoints[name] += photos
            bar.update(len(photos))
    with Progress(f"writing {settings.name}"):
        write_set(target, settings, {part.name: (part.ids, part.numbers, keypoints[part.name]) for part in parts})


@dataclass(frozen=True)
class Split:
    """One split: views first..first + views of `landmarks` landmarks; records in that order."""

    name: str
    stage: str
    landmarks: int
    first: int
    views: int

    @property
    def numbers(self) -> np.ndarray:
        """int64 [N], the landmark of each record, which is its label."""
        return np.repeat(FIRST_LANDMARK[self.stage] + np.arange(self.landmarks), self.views).astype(np.int64)

    @property
    def ids(self) -> list[str]:
        """The id of each record, below `images/` also the name of its photo."""
        pairs = [(i, self.first + j) for i in range(self.landmarks) for j in range(self.views)]
        return [f"{self.name}/{landmark:04d}_{view}" for landmark, view in pairs]

    def tasks(self, settings: Settings, images: Path) -> list[Task]:
        """One task per landmark; photos of all but the training split are written below `images`."""
        paths = []
        if self.stage != "train":
            (images / self.name).mkdir(parents=True)
            paths = [images / f"{name}.jpg" for name in self.ids]
        starts = range(0, self.landmarks * self.views, self.views)
        first = FIRST_LANDMARK[self.stage]
        return [
            Task(settings, first + i, self.first, self.views, tuple(paths[start : start + self.views]))
            for i, start in enumerate(starts)
        ]


def splits(settings: Settings) -> list[Split]:
    """Train, then queries and gallery of validation and test; the two sides show the same instances in other views."""
    parts = [Split("train", "train", settings.train_landmarks, 0, settings.train_views)]
    for stage, count in (("validation", settings.validation_landmarks), ("test", settings.test_landmarks)):
        parts.append(Split(f"{stage}_query", stage, count, 0, settings.query_views))
        parts.append(Split(f"{stage}_gallery", stage, count, settings.query_views, settings.gallery_views))
    return parts


def write_manifest(folder: Path) -> None:
    """Writes size and CRC-32 of every file but the photos, which nothing is computed from once descriptors are there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jpg")
    entries = {path.relative_to(folder).as_posix(): [path.stat().st_size, checksum(path)] for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def check(folder: Path, hint: str = REBUILD_HINT) -> None:
    """Reads every file once (a fraction of a second for 200 MB).

    Raises:
      UserError: naming the first file that is missing or damaged, and how to rebuild the set.
    """
    manifest = folder / MANIFEST
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        expected = {folder / name: (int(size), int(crc)) for name, (size, crc) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest}: cannot be read; {hint}") from error
    for path, (size, crc) in expected.items():
        compare(path, {"bytes": size, "crc32": crc}, hint, read=True)
