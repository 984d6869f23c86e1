"""The commands of `python -m ames_jax.benchmark`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from etils import epy

from ames_jax.benchmarks.flags import DataFlags, EvaluateFlags, ExtractFlags, ScoreFlags, ServeFlags, TrainFlags
from ames_jax.commands.extract import BackboneFlags
from ames_jax.runtime.files import write_json
from ames_jax.runtime.flag_values import Count, Counts

with epy.lazy_imports():  # help needs none of them
    from ames_jax.benchmarks import (
        evaluation_speed,
        extraction_speed,
        scoring_speed,
        serving_speed,
        training_speed,
    )
    from ames_jax.index import model_choice, picture_sets
    from ames_jax.model import released, weights
    from ames_jax.report import methods, run_report

JsonFile = Annotated[Path | None, Parameter(name="--json")]


def data(flags: DataFlags | None = None) -> None:
    """Measure images per second from disk to the training step, from each storage."""
    training_speed.measure_reading(flags or DataFlags())


def score(flags: ScoreFlags | None = None) -> None:
    """Measure pairs per second of queries against their shortlists."""
    scoring_speed.measure(flags or ScoreFlags())


def train(flags: TrainFlags | None = None) -> None:
    """Measure triplets per second of training steps, with and without a teacher."""
    training_speed.measure_steps(flags or TrainFlags())


def extract(flags: ExtractFlags | None = None) -> None:
    """Measure images per second of SIFT and of DINOv2's ViT."""
    extraction_speed.measure(flags or ExtractFlags())


def evaluate(flags: EvaluateFlags | None = None) -> None:
    """Measure a whole evaluation of an ROxford-sized random set, from HDF5 files to mAP."""
    evaluation_speed.measure(flags or EvaluateFlags())


def serve(flags: ServeFlags | None = None) -> None:
    """Measure a server of a made-up index under load, its answers compared with the offline search."""
    serving_speed.measure(flags or ServeFlags())


def collections(
    flags: BackboneFlags | None = None,
    *,
    photos: Path,
    model: str = "mutual",
    bits: Count | None = None,
    teacher: str | None = None,
    validation: Path | None = None,
    validation_queries: Count = 80,
    distractors: Path | None = None,
    shortlist: Count = 100,
    query_descriptors: Count = 300,
    counts: Annotated[Counts, Parameter(consume_multiple=True)] = (256,),
    json_file: JsonFile = None,
) -> None:
    """Measure every method on photographs of several collections, at settings that the other collections prefer.

    Every photo of a scene with two or more is a query against all other photos and the distractors. λ, γ, forms and thresholds
    are chosen for all methods alike: for the queries of one collection those that are best on average over the other
    collections, or with --validation those that are best there.

    Args:
      photos: Folder of scenes COLLECTION__SCENE, each a folder of photos.
      model: Student, run or model directory, or sift, the shipped one; or mutual, hand-made matching with bits learned from
        these descriptors.
      bits: Of mutual, bits per descriptor, a multiple of 8 (default: half of a descriptor's values, at most 128).
      teacher: Its teacher, to be measured too.
      validation: Choose settings on these scenes instead: another such folder, a rendered data set, the word rendered (the
        transfer scenes), or the very photos that are measured, for the best settings there are.
      validation_queries: So many of their pictures are queries.
      distractors: A folder of pictures of nothing that is searched for, or the word rendered (the gallery of the embedded
        landmarks).
      shortlist: Images re-ranked per query.
      query_descriptors: Descriptors of a query.
      counts: Descriptors stored per image.
      json_file: Write figures, settings and the average precision of every query to this file too.
    """
    flags, others = flags or BackboneFlags(), picture_sets.distractors_in(distractors) if distractors else []
    elsewhere = picture_sets.validation_scenes(validation) if validation else None
    taken = picture_sets.read_scenes(photos)
    extractor, chosen = flags.open(), model_choice.ChosenModel.for_collection(model, flags.backbone)
    about, statistics = {"backbone": extractor.name, "width": extractor.width}, getattr(extractor, "statistics", None)
    weights.refuse_other_descriptors(model, chosen.facts, about, statistics and statistics.fingerprint())
    described = picture_sets.Described.extract(taken, others, extractor)
    queries = described.queries()
    groups = np.array([methods.collection_of(scene) for scene in described.scenes[queries]])
    data = described.searched(queries)
    chosen = chosen.fitted(data.database, {}, bits)
    whitened = dataclasses.replace(data, training=data.database)
    compared = run_report.matchers(released.load_model(teacher) if teacher else None, chosen.model, whitened)
    work = run_report.plan(compared, [query_descriptors], counts)
    alone = data, described.searched(queries, expand=True)
    found = [methods.HeldOut(one.first_stage, 0, one.average_precisions(), {}) for one in alone]
    chosen_on = data if elsewhere == taken else None  # the best settings there are, for all methods alike
    if elsewhere and not chosen_on:
        chosen_on = picture_sets.photo_set(elsewhere, [], extractor, validation_queries)
    lengths = [one.ranks.shape[1] for one in (data, chosen_on) if one]
    found += methods.measure_collections(work, data, groups, min(shortlist, *lengths), chosen_on)
    print(methods.collections_table(found, groups))
    if json_file:
        write_json(json_file, {"shortlist": shortlist, "rows": methods.collection_rows(found, groups)})
