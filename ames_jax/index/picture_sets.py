"""Retrieval sets made of picture files, extracted as a user's pictures are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ames_jax import scenes as rendered
from ames_jax.data.readers import MemoryReader
from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.extraction.images import SUFFIXES, load_image
from ames_jax.retrieval import refinement
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.protocols import METRICS
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress

PICTURES_AT_A_TIME = 64
RENDERED = "rendered"  # in place of a folder


def describe(paths: Sequence[Path], backbone: Backbone, label: str) -> tuple[list[DescriptorSet], np.ndarray]:
    """Local descriptors of every picture, their features alone, and the global descriptors float32 [N, D]."""
    local, vectors = [], []
    with Progress(label, len(paths), "pictures") as progress:
        for start in range(0, len(paths), PICTURES_AT_A_TIME):
            part = paths[start : start + PICTURES_AT_A_TIME]
            for image in backbone.extract([load_image(path) for path in part]):
                local.append(DescriptorSet(image.local.features))
                vectors.append(image.global_descriptor)
            progress.update(len(part))
    return local, np.stack(vectors)


@dataclasses.dataclass(frozen=True)
class Described:
    """Pictures and their descriptors.

    Attributes:
      name: of the set of pictures; first_stage: name of the global descriptor.
      scenes: str [N], of each picture; "" of a distractor.
      images: their local descriptors, float16 [N, n, D]; vectors: their global ones, float32 [N, G], of length 1.
    """

    name: str
    first_stage: str
    scenes: np.ndarray
    images: DescriptorSet
    vectors: np.ndarray

    @classmethod
    def extract(cls, scenes: dict[str, list[Path]], distractors: Sequence[Path], backbone: Backbone) -> Described:
        """Photos of scenes, and distractors after them."""
        photos = [(path, scene) for scene, paths in scenes.items() for path in paths]
        name = f"{len(photos)} pictures of {len(scenes)} scenes, {len(distractors)} distractors"
        local, vectors = describe([path for path, _ in photos] + list(distractors), backbone, name)
        images = stack([DescriptorSet(one.features.astype(np.float16)) for one in local], backbone.descriptors)
        labels = np.array([scene for _, scene in photos] + [""] * len(distractors))
        return cls(name, backbone.global_name, labels, images, vectors)

    def queries(self, count: int | None = None) -> np.ndarray:
        """Rows of the photos whose scene has another; count: so many of them, spread over the scenes; None: all."""
        named = self.scenes != ""
        paired = np.flatnonzero(named & ((self.scenes[:, None] == self.scenes).sum(axis=1) > 1))
        return paired[np.unique(np.linspace(0, len(paired) - 1, count or len(paired)).round().astype(int))]

    def searched(self, queries: np.ndarray, *, expand: bool = False) -> RetrievalSet:
        """Lists of all other images for these rows; expand: after α query expansion, which costs no bytes."""
        found = self._searched(queries, self.vectors[queries], self.first_stage)
        if not expand:
            return found
        vectors = refinement.expand_queries(self.vectors[queries], self.vectors, found.ranks)
        return self._searched(queries, vectors, f"{self.first_stage}, queries expanded")

    def _searched(self, queries: np.ndarray, vectors: np.ndarray, first_stage: str) -> RetrievalSet:
        similarities = vectors @ self.vectors.T
        similarities[np.arange(len(queries)), queries] = -np.inf
        ranks = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]  # the photo itself comes last
        others = [np.flatnonzero(self.scenes == self.scenes[row]) for row in queries]
        truth = [{"ok": [int(j) for j in rows if j != row]} for row, rows in zip(queries, others)]
        return RetrievalSet(
            name=self.name,
            first_stage=first_stage,
            ranks=ranks,
            similarities=np.take_along_axis(similarities, ranks, axis=1),
            judged=judge(ranks, truth),
            protocols=METRICS["map"],
            queries=MemoryReader(self.images[queries]),
            database=MemoryReader(self.images),
        )


def photo_set(
    scenes: dict[str, list[Path]], distractors: Sequence[Path], backbone: Backbone, queries: int | None = None
) -> RetrievalSet:
    """Photos and distractors described and searched: lists of all other images for each photo that has a partner.

    queries: so many of the photos, spread over the scenes, are queries; None: all.
    """
    described = Described.extract(scenes, distractors, backbone)
    return described.searched(described.queries(queries))


def read_scenes(folder: Path) -> dict[str, list[Path]]:
    """The photos of each subfolder; raises UserError where there are none, or no scene has two."""
    places = sorted(path for path in folder.glob("*") if path.is_dir())
    scenes = {place.name: pictures for place in places if (pictures := _pictures(place))}
    if not any(len(pictures) > 1 for pictures in scenes.values()):
        raise UserError(f"--photos={folder}: expected a subfolder for each scene, one at least with two photos or more")
    return scenes


def rendered_scenes(folder: Path) -> dict[str, list[Path]]:
    """The validation pictures of a rendered set by what they show; raises UserError where it holds none."""
    scenes: dict[str, list[Path]] = {}
    for path in sorted((folder / "images").glob("validation_*/*.jpg")):
        scenes.setdefault(path.stem.partition("_")[0], []).append(path)
    if not scenes:
        raise UserError(
            f"{folder / 'images'}: no pictures of the validation split; give the folder of a rendered data set"
        )
    return scenes


def validation_scenes(folder: Path) -> dict[str, list[Path]]:
    """Scenes to choose settings on: of a folder of scenes, of a rendered data set, or of the word rendered, which stands for
    the transfer scenes; raises UserError as `read_scenes` and `rendered_scenes`."""
    if str(folder) == RENDERED:
        return rendered_scenes(rendered.build("transfer"))
    return rendered_scenes(folder) if (folder / "images").is_dir() else read_scenes(folder)


def distractors_in(folder: Path | None) -> list[Path]:
    """The pictures of a folder; of None or the word rendered, those of the rendered gallery of the embedded landmarks.

    Raises UserError for a folder without pictures.
    """
    folder = None if str(folder) == RENDERED else folder
    pictures = _pictures(folder or rendered.build("landmarks") / "images" / "test_gallery")
    if not pictures:
        raise UserError(f"--distractors={folder}: no pictures there; expected files of {', '.join(sorted(SUFFIXES))}")
    return pictures


def statistics_beside(model: str | Path, root: Path | None) -> Path:
    """SIFT statistics in the folder of a run or model, else those of the data set at `root` (None: the transfer scenes)."""
    beside = Path(model) / STATISTICS_FILE
    return beside if beside.is_file() else (root or rendered.build("transfer")) / STATISTICS_FILE


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
