"""Re-ranking of a folder of photographs, a subfolder a scene: python -m ames_jax.benchmarks.photos --photos=DIR

Every photo of a scene with two or more is a query; the right answers are the others of its scene, and the gallery is all
other photos and the rendered distractors. λ, γ and the thresholds of hand-made matching are chosen on the rendered
validation split, where local matches are worth more than on photographs, or with --choose-on=photos on the photos
themselves, for all methods alike; the figures are then those of the best setting.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.images import SUFFIXES, load_image
from ames_jax.model.released import load_model
from ames_jax.report.comparison import Comparison
from ames_jax.report.run_report import contestants, measure
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.retrieval.sets import EvaluationSet
from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError, run_main
from ames_jax.scenes import landmarks, transfer

SHIPPED = Path(__file__).parents[1] / "model" / "shipped" / "sift"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of global only, hand-made matching and the models; returns the exit code."""
    arguments = _parser().parse_args(argv)
    cache.start()
    scenes = read_scenes(arguments.photos)
    student = load_model(arguments.model)
    teacher = load_model(arguments.teacher) if arguments.teacher else None
    root = arguments.validation or transfer.build()
    statistics = arguments.statistics or statistics_beside(arguments.model, root)
    backbone = open_backbone(
        "sift", statistics=statistics, descriptors=arguments.descriptors, max_side=arguments.max_side
    )
    photos = photo_set(scenes, distractors_in(arguments.distractors), backbone)
    if arguments.choose_on == "photos":
        validation = photos
    else:
        # Extracted anew, as the photos are: the number of descriptors may be another than the data set's.
        validation = photo_set(rendered_scenes(root / "images"), [], backbone, arguments.validation_queries)
    shortlist = min(arguments.shortlist, photos.ranks.shape[1], validation.ranks.shape[1])
    settings = ConfigDict({"query_descriptors": (100,), "database_descriptors": (50, 64)})
    chosen = contestants(root, teacher, student)
    measured = [measure(contestant, settings, validation, photos, shortlist) for contestant in chosen]
    comparison = Comparison(
        photos.name, "mAP", photos.first_stage, [photos.map_of(photos.ranks)], shortlist, photos.ceiling(shortlist),
        tuple(method for one in measured for method in one.methods),
    )  # fmt: skip
    print(markdown_table(comparison))
    if arguments.json:
        used = [setting for one in measured for setting in one.settings]
        arguments.json.write_text(json.dumps({"rows": table_rows(comparison), "settings": used}, indent=1))
    return 0


def read_scenes(folder: Path) -> dict[str, list[Path]]:
    """The photos of each subfolder; raises UserError where there are none, or no scene has two."""
    scenes = {}
    for scene in sorted(path for path in folder.glob("*") if path.is_dir()):
        found = _pictures(scene)
        if found:
            scenes[scene.name] = found
    if not any(len(found) > 1 for found in scenes.values()):
        raise UserError(f"--photos={folder}: expected a subfolder for each scene, one at least with two photos or more")
    return scenes


def rendered_scenes(folder: Path) -> dict[str, list[Path]]:
    """The validation pictures of a rendered set by what they show; raises UserError where it holds none."""
    scenes: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("validation_*/*.jpg")):
        scenes.setdefault(path.stem.partition("_")[0], []).append(path)
    if not scenes:
        raise UserError(f"{folder}: no pictures of the validation split; give the folder of a rendered data set")
    return scenes


def statistics_beside(model: str | Path, root: Path | None) -> Path:
    """SIFT statistics in the folder of a run or model, else those of the data set at `root` (None: the transfer scenes)."""
    beside = Path(model) / STATISTICS_FILE
    return beside if beside.is_file() else (root or transfer.build()) / STATISTICS_FILE


def distractors_in(folder: Path | None) -> list[Path]:
    """The pictures of a folder; of None, those of the rendered gallery of the embedded landmarks.

    Raises UserError for a folder without pictures.
    """
    found = _pictures(folder or landmarks.build() / "images" / "test_gallery")
    if not found:
        raise UserError(f"--distractors={folder}: no pictures there; expected files of {', '.join(sorted(SUFFIXES))}")
    return found


def photo_set(
    scenes: dict[str, list[Path]], distractors: Sequence[Path], backbone: Backbone, queries: int | None = None
) -> EvaluationSet:
    """Photos and distractors described and searched: lists of all other images for each photo that has a partner.

    queries: so many of the photos, spread over the scenes, ask; None: all.
    """
    photos = [(path, scene) for scene, found in scenes.items() for path in found]
    labels = np.array([scene for _, scene in photos] + [""] * len(distractors))
    paths = [path for path, _ in photos] + list(distractors)
    found = [
        one
        for start in range(0, len(paths), backbone.together)
        for one in backbone.extract([load_image(path) for path in paths[start : start + backbone.together]])
    ]
    images = stack([DescriptorSet(one.local.features.astype(np.float16)) for one in found], backbone.descriptors)
    vectors = np.stack([one.global_descriptor for one in found])
    asking = np.array([i for i in range(len(photos)) if (labels == labels[i]).sum() > 1])
    asking = asking[np.unique(np.linspace(0, len(asking) - 1, queries or len(asking)).round().astype(int))]
    similarities = vectors[asking] @ vectors.T
    similarities[np.arange(len(asking)), asking] = -np.inf
    ranks = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]  # the photo itself comes last
    truth = [{"ok": [int(j) for j in np.flatnonzero(labels == labels[i]) if j != i], "junk": []} for i in asking]
    names = [f"{path.parent.name}/{path.stem}" for path in paths]
    return EvaluationSet(
        f"{len(photos)} pictures of {len(scenes)} scenes, {len(distractors)} distractors",
        backbone.global_name, paths[0].parents[1], images[asking], images,
        np.arange(len(paths)), [names[i] for i in asking], names, ranks,
        np.take_along_axis(similarities, ranks, axis=1), truth,
    )  # fmt: skip


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ames_jax.benchmarks.photos", description=__doc__)
    add = parser.add_argument
    add("--photos", type=Path, required=True, metavar="DIR", help="folder of scenes, each a folder of photos")
    add("--model", default=str(SHIPPED), help="student: run or model directory (default: the shipped sift model)")
    add("--teacher", help="its teacher, to be measured too (run or model directory)")
    add("--statistics", type=Path, metavar="FILE.npz", help="SIFT statistics (default: beside the model)")
    add(
        "--validation", type=Path, metavar="DIR", help="rendered set that λ, γ are chosen on (default: transfer scenes)"
    )
    add(
        "--choose-on", choices=("rendered", "photos"), default="rendered",
        help="pictures on which λ, γ and thresholds are chosen (default: rendered)",
    )  # fmt: skip
    add("--validation-queries", type=int, default=80, help="queries of it (default: 80)")
    add("--distractors", type=Path, metavar="DIR", help="pictures (default: the rendered gallery of the landmarks)")
    add("--shortlist", type=int, default=100, help="images re-ranked a query (default: 100)")
    add("--descriptors", type=int, help="descriptors behind the global one (default: as `extract`)")
    add("--max-side", type=int, help="photos are made this large at most, pixels (default: as `extract`)")
    add("--json", type=Path, metavar="FILE", help="write figures and settings there too")
    return parser


if __name__ == "__main__":
    run_main(main)
