"""The commands that work on photographs of one's own, a subfolder per scene: `search calibrate` and `benchmark photos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.command_line import Count
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_json

with epy.lazy_imports():  # help needs none of them
    from ames_jax import scenes
    from ames_jax.data import shards
    from ames_jax.extraction import backbone, backbones, sift
    from ames_jax.index import model_choice, picture_sets
    from ames_jax.model import released, weights
    from ames_jax.report import comparison, run_report, tables
    from ames_jax.retrieval import grid, matchers, scores, tuning

QUERY_DESCRIPTORS, DATABASE_DESCRIPTORS = 100, 64
JsonFile = Annotated[Path | None, Parameter(name="--json")]


def calibrate(
    *,
    run: Path,
    out: Path,
    data: Path | None = None,
    photos: Path | None = None,
    distractors: Path | None = None,
    queries: Count = 120,
    shortlist: Count = 100,
) -> None:
    """Make a model for SIFT search of a trained student: choose its λ and γ on pictures extracted as photos are.

    The pictures are the validation pictures of a rendered set, or some tens of your own photos. The folder of the model
    then holds model.safetensors and sift_statistics.npz.

    Args:
      run: Run of a binary student, or a model directory.
      out: Folder of the calibrated model.
      data: Rendered set with validation pictures (default: the transfer scenes).
      photos: Choose on these photos instead, a subfolder per scene.
      distractors: Among these pictures (default: the rendered gallery of the embedded landmarks).
      queries: Rendered pictures that are queries.
      shortlist: Images re-ranked per query.
    """
    directory = weights.find_model(run)
    model, facts = weights.read_model(directory), weights.facts_of(directory)
    taken = picture_sets.read_scenes(photos) if photos else None
    file = picture_sets.statistics_beside(run, data)
    statistics = sift.SiftStatistics.load(file)
    fingerprint = statistics.fingerprint()
    if facts.get("statistics", fingerprint) != fingerprint:
        raise UserError(
            f"{run}: was trained with other SIFT statistics ({facts['statistics'][:8]}) than {file} holds "
            f"({fingerprint[:8]}); put the {backbone.STATISTICS_FILE} of its run beside it"
        )
    extractor = backbones.open_backbone("sift", statistics=file)
    if taken:
        chosen_on = picture_sets.photo_set(taken, picture_sets.distractors_in(distractors), extractor)
    else:
        rendered = picture_sets.rendered_scenes(data or scenes.build("transfer"))
        chosen_on = picture_sets.photo_set(rendered, [], extractor, queries)
    matcher, k = matchers.ModelMatcher(model, str(run)), min(shortlist, chosen_on.ranks.shape[1])
    counts = grid.Counts(QUERY_DESCRIPTORS, DATABASE_DESCRIPTORS)
    found = tuning.tune(scores.ScoreKeeper(), matcher, chosen_on, k=k, counts=counts)
    before, after, setting = chosen_on.figures()["mAP"], found.figures["mAP"], found.setting
    print(f"{chosen_on.name}: mAP {before:.1f} → {after:.1f} at λ {setting.lam:g}, γ {setting.gamma:g}")
    facts |= {"validation_map": after, "lam": setting.lam, "gamma": setting.gamma}
    facts |= {"backbone": "sift", "statistics": fingerprint}
    print(weights.save_model(model, out, facts))
    statistics.save(out / backbone.STATISTICS_FILE)


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
    work = run_report.plan(compared, [QUERY_DESCRIPTORS], [50, DATABASE_DESCRIPTORS])
    measured = tuning.tune_all(work, chosen_on, test, min(shortlist, test.ranks.shape[1], chosen_on.ranks.shape[1]))
    found = comparison.compare(test, measured, test.protocols[0])
    print(tables.markdown_table(found))
    if json_file:
        write_json(json_file, {"rows": tables.table_rows(found), "settings": run_report.setting_rows(measured)})
