"""Photographs, the scenes that they show, and which of them a re-ranker learns from, is validated on and tested on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.extraction.listing import ImageFile, ImageFiles, list_images
from ames_jax.extraction.stamps import stamps_of
from ames_jax.runtime.errors import UserError

LEAST_SCENES = 4
EXAMPLES = 6  # photos on the sheet of views, and views of each at most


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """Settings of a set. Two equal settings give the same set of the same photos.

    Attributes:
      count: warped views of every photo in training, beside the photo itself.
      queries: views that ask for a photo of validation or test.
      strength: of the warps, see `warping.warp`.
      labels: whether sub-folders and the labels of a list are scenes, all of whose photos show the same.
      validation, test: shares of the instances that are set apart, at least one of each.
      rendered: rendered scenes that are mixed into training, with as many pictures of each as a photo has.
      seed: of warps, splits and rendered scenes.
    """

    count: int = 6
    queries: int = 2
    strength: float = 1.0
    labels: bool = True
    validation: float = 0.15
    test: float = 0.15
    rendered: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Photographs in their order: path, scene (the photos of one scene show the same), and a hash of the content, of each."""

    paths: list[Path]
    scenes: list[int]
    hashes: list[list[int]]

    @classmethod
    def find(cls, places: Sequence[str | Path], labels: bool = True) -> Photographs:
        """The pictures of folders and lists (`listing.list_images`); a copy of a picture counts once.

        labels: see `ViewSettings`.
        Raises UserError: no such folder or list, or no picture in it.
        """
        paths: list[Path] = []
        names: list[tuple] = []
        for number, place in enumerate(places):
            listed = list_images(Path(place), flag="--config.photos")
            for file in listed.files:
                paths.append(file.path)
                labelled = labels and file.label >= 0
                names.append((number, "scene", file.label) if labelled else (number, "photo", file.id))
        hashes = stamps_of(paths)[:, [0, 2, 3]].tolist()
        first: dict[tuple, int] = {}
        for row, found in enumerate(hashes):
            first.setdefault(tuple(found) if any(found) else (row,), row)
        rows = sorted(first.values())
        number_of = {name: number for number, name in enumerate(dict.fromkeys(names[row] for row in rows))}
        scenes = [number_of[names[row]] for row in rows]
        return cls([paths[row] for row in rows], scenes, [hashes[row] for row in rows])

    def __len__(self) -> int:
        return len(self.paths)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Photos and views of each split.

    Attributes:
      photographs: all that were found. rows: those that can be read, in the order of the gallery.
      stage: of each row, "train", "validation" or "test".
      alone: of each row, whether no other photo shows its scene.
    """

    photographs: Photographs
    rows: list[int]
    stage: list[str]
    alone: list[bool]
    settings: ViewSettings

    @classmethod
    def make(cls, photographs: Photographs, rows: list[int], settings: ViewSettings) -> Plan:
        """Sets whole scenes apart; raises UserError where there are too few."""
        scenes = np.array([photographs.scenes[row] for row in rows])
        count = Counter(scenes.tolist())
        if len(count) < LEAST_SCENES:
            raise UserError(
                f"--config.photos: {len(rows)} photographs of {len(count)} scenes (sub-folders); expected {LEAST_SCENES} "
                "scenes or more, or --config.views.labels=false where sub-folders are no scenes"
            )
        order = np.random.default_rng(settings.seed).permutation(sorted(count))
        test = max(1, round(settings.test * len(order)))
        ends = test, test + max(1, round(settings.validation * len(order)))
        stage_of = dict.fromkeys(order.tolist(), "train")
        stage_of |= dict.fromkeys(order[: ends[0]].tolist(), "test")
        stage_of |= dict.fromkeys(order[slice(*ends)].tolist(), "validation")
        own = scenes.tolist()
        stages, alone = [stage_of[scene] for scene in own], [count[scene] == 1 for scene in own]
        return cls(photographs, rows, stages, alone, settings)

    def __str__(self) -> str:
        counts = Counter(self.stage)
        scenes = len({self.photographs.scenes[row] for row in self.rows})
        of = f" of {scenes:,} scenes" if scenes < len(self.rows) else ", each taken for a scene of its own"
        return (
            f"{len(self.rows):,} photographs{of}: {counts['train']:,} to learn from, {counts['validation']:,} for "
            f"validation, {counts['test']:,} for the test"
        )

    def facts(self) -> dict[str, Any]:
        """File, scene and stage of every photo, by its place in the gallery."""
        paths, scenes = (
            [values[row] for row in self.rows] for values in (self.photographs.paths, self.photographs.scenes)
        )
        return {"photographs": list(map(str, paths)), "scenes": scenes, "stages": self.stage}

    def views(self) -> Iterator[tuple[int, str, int]]:
        """Photo, split and number of every view that is to be warped."""
        for row, stage, alone in zip(self.rows, self.stage, self.alone):
            if stage == "train":
                yield from ((row, stage, number) for number in range(self.settings.count))
            elif alone:
                yield from ((row, f"{stage}_query", number) for number in range(self.settings.queries))

    def splits(self, folder: Path) -> dict[str, ImageFiles]:
        """The pictures of each split; a label is the scene."""
        found: dict[str, list[ImageFile]] = {"gallery": [], "train": [], "validation_query": [], "test_query": []}
        for row, stage, alone in zip(self.rows, self.stage, self.alone):
            picture = ImageFile(f"gallery/{row:05d}", photo_file(folder, row), self.photographs.scenes[row])
            found["gallery"].append(picture)
            if stage == "train":
                found[stage].append(picture)
            elif not alone:
                found[f"{stage}_query"].append(picture)
        for row, split, number in self.views():
            picture = view_file(folder, row, split, number)
            found[split].append(ImageFile(f"{split}/{picture.stem}", picture, self.photographs.scenes[row]))
        for number in range(self.settings.rendered):
            scene = len(self.photographs) + number  # no photo's: there are at most as many scenes as photos
            files = rendered_files(folder, number, self.settings)
            found["train"] += [ImageFile(f"train/{file.stem}", file, scene) for file in files]
        return {name: ImageFiles(folder, images) for name, images in found.items()}

    def examples(self, folder: Path) -> list[list[Path]]:
        """Files of a few training photos, each followed by its views."""
        rows = [row for row, stage in zip(self.rows, self.stage) if stage == "train"]
        rows = [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).round().astype(int))]
        numbers = range(min(self.settings.count, EXAMPLES))
        return [[photo_file(folder, r), *(view_file(folder, r, "train", n) for n in numbers)] for r in rows]

    def truth(self, stage: str) -> dict[str, Any]:
        """Ground truth of the queries of a stage, in the order of its split."""
        place = {row: number for number, row in enumerate(self.rows)}
        scenes = np.array([self.photographs.scenes[row] for row in self.rows])
        queries = []
        for number in range(len(self.rows)):
            if self.stage[number] == stage and not self.alone[number]:
                others = np.flatnonzero(scenes == scenes[number]).tolist()
                queries.append({"ok": [other for other in others if other != number], "junk": [number]})
        queries += [{"ok": [place[row]], "junk": []} for row, split, _ in self.views() if split == f"{stage}_query"]
        return {"query": f"{stage}_query", "database": "gallery", "queries": queries}


def photo_file(folder: Path, row: int) -> Path:
    """The file of a photo at the size of views, in the folder of a set."""
    return folder / "images" / "gallery" / f"{row:05d}.jpg"


def view_file(folder: Path, row: int, split: str, number: int) -> Path:
    """The file of a view of a photo."""
    return folder / "images" / split / f"{row:05d}_{number}.jpg"


def rendered_files(folder: Path, number: int, settings: ViewSettings) -> tuple[Path, ...]:
    """The files of a rendered scene's pictures."""
    return tuple(folder / "images" / "train" / f"rendered{number:05d}_{view}.jpg" for view in range(settings.count + 1))
