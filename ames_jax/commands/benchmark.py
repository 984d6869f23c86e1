"""The commands of `python -m ames_jax.benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter
from etils import epy

from ames_jax.benchmarks.flags import DataFlags, EvaluateFlags, ExtractFlags, ScoreFlags, ServeFlags, TrainFlags
from ames_jax.commands.extract import BackboneFlags
from ames_jax.runtime.command_line import Count, Counts
from ames_jax.runtime.files import write_json

with epy.lazy_imports():  # help needs none of them
    from ames_jax import scenes
    from ames_jax.benchmarks import (
        evaluation_speed,
        extraction_speed,
        photo_collections,
        reading_speed,
        scoring_speed,
        serving_speed,
        training_speed,
    )
    from ames_jax.data import shards
    from ames_jax.extraction import backbones
    from ames_jax.index import model_choice, picture_sets
    from ames_jax.model import released
    from ames_jax.report import comparison, run_report, tables
    from ames_jax.retrieval import tuning

JsonFile = Annotated[Path | None, Parameter(name="--json")]


def data(flags: DataFlags | None = None) -> None:
    """Measure images per second from disk to the training step, from each storage."""
    reading_speed.measure(flags or DataFlags())


def score(flags: ScoreFlags | None = None) -> None:
    """Measure pairs per second of queries against their shortlists."""
    scoring_speed.measure(flags or ScoreFlags())


def train(flags: TrainFlags | None = None) -> None:
    """Measure triplets per second of training steps, with and without a teacher."""
    training_speed.measure(flags or TrainFlags())


def extract(flags: ExtractFlags | None = None) -> None:
    """Measure images per second of SIFT and of DINOv2's ViT."""
    extraction_speed.measure(flags or ExtractFlags())


def evaluate(flags: EvaluateFlags | None = None) -> None:
    """Measure a whole evaluation of an ROxford-sized random set, from HDF5 files to mAP."""
    evaluation_speed.measure(flags or EvaluateFlags())


def serve(flags: ServeFlags | None = None) -> None:
    """Measure a server of a made-up index under load, its answers compared with the offline search."""
    serving_speed.measure(flags or ServeFlags())


def photos(
    *,
    photos: Path,
    model: str | None = None,
    teacher: str | None = None,
    statistics: Path | None = None,
    validation: Path | None = None,
    choose_on: Literal["rendered", "photos"] = "rendered",
    validation_queries: Count = 80,
    distractors: Path | None = None,
    shortlist: Count = 100,
    descriptors: Count | None = None,
    max_side: Count | None = None,
    json_file: JsonFile = None,
) -> None:
    """Measure global search, hand-made matching and models on a folder of photographs, and print their table.

    Every photo of a scene with two or more is a query; the right answers are the others of its scene, and the database is
    all other photos and the distractors. λ, γ and the thresholds of hand-made matching are chosen on rendered pictures,
    where local matches are worth more than on photographs, or with --choose-on=photos on the photos themselves, for all
    methods alike; the figures are then those of the best setting.

    Args:
      photos: Folder of scenes, each a folder of photos.
      model: Student: run or model directory (default: the one shipped for SIFT).
      teacher: Its teacher, to be measured too: run or model directory.
      statistics: SIFT statistics, .npz (default: those beside the model).
      validation: Rendered set on which λ and γ are chosen (default: the transfer scenes).
      choose_on: Pictures on which λ, γ and thresholds are chosen.
      validation_queries: Queries of the rendered set.
      distractors: Folder of pictures (default: the rendered gallery of the embedded landmarks).
      shortlist: Images re-ranked per query.
      descriptors: Descriptors behind the global one (default: as `extract`).
      max_side: Photos are made this large at most, in pixels (default: as `extract`).
      json_file: Write figures and settings to this file too.
    """
    taken = picture_sets.read_scenes(photos)
    chosen = model_choice.ChosenModel.load(model, "sift")
    root = validation or scenes.build("transfer")
    statistics = statistics or picture_sets.statistics_beside(chosen.name, root)
    options = {"statistics": statistics, "descriptors": descriptors, "max_side": max_side}
    extractor = backbones.open_backbone("sift", **options)
    test = chosen_on = picture_sets.photo_set(taken, picture_sets.distractors_in(distractors), extractor)
    if choose_on == "rendered":
        # Extracted anew, as the photos are: the number of descriptors may be another than the data set's.
        rendered = picture_sets.rendered_scenes(root)
        chosen_on = picture_sets.photo_set(rendered, [], extractor, validation_queries)
    compared = run_report.matchers(
        released.load_model(teacher) if teacher else None, chosen.model, shards.open_split(root, "train")
    )
    work = run_report.plan(compared, [100], [50, 64])
    measured = tuning.tune_all(work, chosen_on, test, min(shortlist, test.ranks.shape[1], chosen_on.ranks.shape[1]))
    found = comparison.compare(test, measured, test.protocols[0])
    print(tables.markdown_table(found))
    if json_file:
        write_json(json_file, {"rows": tables.table_rows(found), "settings": run_report.setting_rows(measured)})


def collections(
    flags: BackboneFlags | None = None,
    *,
    photos: Path,
    model: str = "mutual",
    teacher: str | None = None,
    shortlist: Count = 100,
    query_descriptors: Count = 200,
    counts: Annotated[Counts, Parameter(consume_multiple=True)] = (128,),
    json_file: JsonFile = None,
) -> None:
    """Measure every method on photographs of several collections, at settings that the other collections prefer.

    Every photo of a scene with two or more is a query against all other photos. λ, γ, forms and thresholds are chosen for all
    methods alike: for the queries of one collection those that are best on average over the other collections.

    Args:
      photos: Folder of scenes COLLECTION__SCENE, each a folder of photos.
      model: Student, run or model directory; or mutual, hand-made matching with bits learned from these descriptors.
      teacher: Its teacher, to be measured too.
      shortlist: Images re-ranked per query.
      query_descriptors: Descriptors of a query.
      counts: Descriptors stored per image.
      json_file: Write figures, settings and the average precision of every query to this file too.
    """
    flags = flags or BackboneFlags()
    described = picture_sets.Described.extract(picture_sets.read_scenes(photos), [], flags.open())
    queries = described.queries()
    groups = np.array([photo_collections.collection_of(scene) for scene in described.scenes[queries]])
    data = described.searched(queries)
    chosen = model_choice.ChosenModel.for_collection(model, flags.backbone).fitted(data.database, {})
    compared = run_report.matchers(released.load_model(teacher) if teacher else None, chosen.model, data.database)
    work = run_report.plan(compared, [query_descriptors], counts)
    expanded = described.searched(queries, expand=True)
    found = [photo_collections.HeldOut(one.first_stage, 0, one.average_precisions(), {}) for one in (data, expanded)]
    found += photo_collections.measure(work, data, groups, min(shortlist, data.ranks.shape[1]))
    print(photo_collections.table(found, groups))
    if json_file:
        write_json(json_file, {"shortlist": shortlist, "rows": photo_collections.rows(found, groups)})
