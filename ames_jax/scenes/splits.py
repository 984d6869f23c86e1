"""The splits of a rendered data set: which instances and views each holds, and the tasks that render them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ames_jax.scenes.rendering import Task
from ames_jax.scenes.scene import World
from ames_jax.scenes.settings import Settings

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

    def tasks(self, settings: Settings, photos: Path | None, open_world: Callable[[Settings], World]) -> list[Task]:
        ids, start = self.ids, FIRST_LANDMARK[self.stage]
        paths = [photos / f"{name}.jpg" for name in ids] if photos else []
        return [
            Task(
                settings, start + i, self.first, self.views,
                tuple(paths[i * self.views : (i + 1) * self.views]), open_world,
            )
            for i in range(self.landmarks)
        ]  # fmt: skip


def splits(settings: Settings) -> list[Split]:
    """Train, then queries and gallery of validation and test; the two sides show the same instances in other views."""
    found = [Split("train", "train", settings.train_landmarks, 0, settings.train_views)]
    for stage, count in (("validation", settings.validation_landmarks), ("test", settings.test_landmarks)):
        found.append(Split(f"{stage}_query", stage, count, 0, settings.query_views))
        found.append(Split(f"{stage}_gallery", stage, count, settings.query_views, settings.gallery_views))
    return found
