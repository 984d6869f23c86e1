"""Builds the embedded data set: renders, describes, and writes it like any other data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ames_jax.data.landmarks import cache
from ames_jax.data.landmarks.rendering import Task, Views, run_tasks
from ames_jax.data.landmarks.settings import NAME, Settings

# Landmark numbers of a stage start here: the stages share no landmark.
FIRST_LANDMARK = {"train": 0, "validation": 1_000_000, "test": 2_000_000}


@dataclass(frozen=True)
class Split:
    """One split: views first..first + views of `landmarks` landmarks from number `start`; records in that order."""

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
        pairs = [(i, self.first + j) for i in range(self.landmarks) for j in range(self.views)]
        return [f"{self.name}/{landmark:04d}_{view}" for landmark, view in pairs]

    def tasks(self, settings: Settings, photos: Path | None) -> list[Task]:
        ids, start = self.ids, FIRST_LANDMARK[self.stage]
        paths = [photos / f"{name}.jpg" for name in ids] if photos else []
        return [
            Task(settings, start + i, self.first, self.views, tuple(paths[i * self.views : (i + 1) * self.views]))
            for i in range(self.landmarks)
        ]


def splits(settings: Settings) -> list[Split]:
    found = [Split("train", "train", settings.train_landmarks, 0, settings.train_views)]
    for stage, count in (("validation", settings.validation_landmarks), ("test", settings.test_landmarks)):
        found.append(Split(f"{stage}_query", stage, count, 0, settings.query_views))
        found.append(Split(f"{stage}_gallery", stage, count, settings.query_views, settings.gallery_views))
    return found


def build(
    root: Path | None = None,
    settings: Settings | None = None,
    *,
    processes: int | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> Path:
    """The folder of the ready data set, built first where it is not there yet.

    Args:
      root: folder to keep built sets in; by default AMES_JAX_HOME or the platform's cache directory.
      settings: what to build; another content has another folder.
      processes: rendering processes; by default one for each core this process may use.
      rebuild: build again even where it is there.
      progress: show a progress bar on stderr.

    Raises:
      UserError: when a file of the built set is missing or damaged (named, with how to rebuild), or `root` cannot be
        written.
    """
    settings = settings or Settings()
    folder = Path(root or cache.cache_home()) / f"landmarks-{settings.key()}"
    if folder.exists() and not rebuild:
        cache.check(folder)
        return folder
    cache.publish(folder, lambda target: _fill(target, settings, processes, progress), replace=rebuild)
    return folder


def _fill(target: Path, settings: Settings, processes: int | None, progress: bool) -> None:
    parts = splits(settings)
    views = _render(target, parts, settings, processes, progress)
    from ames_jax.data.landmarks.writing import write_set  # after rendering: it starts JAX

    write_set(target, parts, views, settings)


def _render(
    target: Path, parts: list[Split], settings: Settings, processes: int | None, progress: bool
) -> dict[str, Views]:
    """Views of every split; photos of all but the training split are written below images/."""
    from tqdm import tqdm

    tasks, owners = [], []
    for part in parts:
        photos = None if part.stage == "train" else target / "images"
        if photos:
            (photos / part.name).mkdir(parents=True)
        tasks += part.tasks(settings, photos)
        owners += [part.name] * part.landmarks
    found: dict[str, list[Views]] = {part.name: [] for part in parts}
    images = sum(task.views for task in tasks)
    with tqdm(total=images, desc=f"building {NAME}", unit="photo", mininterval=0.5, disable=not progress) as bar:
        for owner, task, views in zip(owners, tasks, run_tasks(tasks, processes)):
            found[owner].append(views)
            bar.update(task.views)
    return {name: Views.join(parts_of) for name, parts_of in found.items()}
