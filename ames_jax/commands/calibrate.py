"""The command `search calibrate`: parameters are the flags, docstrings their help."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from etils import epy

from ames_jax.commands.search_flags import PictureFlags
from ames_jax.runtime.command_line import check_paths
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.flag_values import Count, Fraction

with epy.lazy_imports():  # help needs none of them
    from ames_jax import scenes
    from ames_jax.extraction import backbone, sift
    from ames_jax.index import building, changes, comparing, index_json, picture_sets, searcher
    from ames_jax.model import weights
    from ames_jax.report import search_results
    from ames_jax.retrieval import calibration, grid, matchers, score_keeper, tuning


def calibrate(
    flags: PictureFlags | None = None,
    *,
    index: Path | None = None,
    labels: str = "folder",
    pictures: Path | None = None,
    threshold: Fraction = 0.5,
    run: Path | None = None,
    out: Path | None = None,
    data: Path | None = None,
    photos: Path | None = None,
    distractors: Path | None = None,
    queries: Count = 120,
    shortlist: Count | None = None,
    query_descriptors: Count = 100,
) -> None:
    """Give an index probabilities, from labels of its pictures; or make a model for search of a trained student.

    With --index: what logits say about pictures of this kind is learned from the index's own pictures, each searched for among
    the others. From then on hits have a probability, and "no match" is said where none reaches the threshold.

    With --run: λ and γ are chosen on pictures extracted as photos are, the validation pictures of a rendered set, or some tens
    of your own photos, by the backbone that the student was trained on. Photos give the model probabilities, too, which its
    indexes then have. The folder of the model holds model.safetensors, and of SIFT sift_statistics.npz.

    Args:
      flags: Flags of pictures, with --run.
      index: What `search index` wrote.
      labels: What its pictures show: the word folder (the name of their folder), or a file with lines of picture,label.
      pictures: Folder of the indexed pictures, where they have moved.
      threshold: Probability from which on an image counts as a match.
      run: Run of a binary student, or a model directory.
      out: Folder of the calibrated model.
      data: Rendered set with validation pictures (default: the transfer scenes).
      photos: Choose on these photos instead, a subfolder per scene.
      distractors: Among these pictures (default: the rendered gallery of the embedded landmarks).
      queries: Pictures that are queries, of the index or of the rendered set.
      shortlist: Images re-ranked per query (default: of an index its own, of a run 100).
      query_descriptors: Of a query, with --run; an index has its own number.
    """
    flags = flags or PictureFlags()
    if (index is None) == (run is None):
        raise UserError("give --index=INDEX for probabilities, or --run=RUN with --out=MODEL for a model")
    check_paths(index=index, pictures=pictures, run=run, data=data, photos=photos, distractors=distractors)
    if index is None:
        if out is None:
            raise UserError("--out is missing: the folder of the calibrated model")
        counts = queries, shortlist or 100, query_descriptors
        _calibrate_model(flags, run, out, data, photos, distractors, counts, threshold)
        return
    if out or data or photos or distractors or flags != PictureFlags():
        raise UserError(
            "--out, --data, --photos, --distractors and the flags of a backbone belong to --run: leave them out with --index"
        )
    known = search_results.Labels.read(labels)
    opened = searcher.Searcher(index, shortlist=shortlist, pictures=pictures)
    pairs = comparing.judged_pairs(opened, known.of, queries, pictures)
    fitted, text = pairs.fit(threshold, opened.query_descriptors)
    with changes.changing(index) as held:
        index_json.publish(held.path, {**held.facts, "probability": fitted.facts()})
    print(f"{index}: {text}")


def _calibrate_model(
    flags: PictureFlags,
    run: Path,
    out: Path,
    data: Path | None,
    photos: Path | None,
    distractors: Path | None,
    counts: tuple[int, int, int],
    threshold: float,
) -> None:
    queries, shortlist, query_descriptors = counts
    directory = weights.find_model(run)
    model, facts = weights.read_model(directory), weights.facts_of(directory)
    name, statistics = flags.backbone or facts.get("backbone") or "sift", None
    taken = picture_sets.read_scenes(photos) if photos else None
    if name == "sift":
        flags = dataclasses.replace(flags, statistics=flags.statistics or picture_sets.statistics_beside(run, data))
        statistics = sift.SiftStatistics.load(flags.statistics)
    extractor = flags.open(name)
    about = {"backbone": extractor.name, "width": extractor.width}
    weights.refuse_other_descriptors(str(run), facts, about, statistics and statistics.fingerprint())
    pictures = taken or picture_sets.rendered_scenes(data or scenes.build("transfer"))
    others = picture_sets.distractors_in(distractors) if taken else []
    described = picture_sets.Described.extract(pictures, others, extractor)
    asked = described.queries(None if taken else queries)
    chosen_on = described.searched(asked)
    matcher, k = matchers.ModelMatcher(model, str(run)), min(shortlist, chosen_on.ranks.shape[1])
    descriptors = grid.Counts(query_descriptors, building.KILOBYTE // matcher.stored_bytes(1))
    found = tuning.tune(score_keeper.ScoreKeeper(), matcher, chosen_on, k=k, counts=descriptors)
    before, after, setting = chosen_on.figures()["mAP"], found.figures["mAP"], found.setting
    print(f"{chosen_on.name}: mAP {before:.1f} → {after:.1f} at λ {setting.lam:g}, γ {setting.gamma:g}")
    facts |= {"validation_map": after, "lam": setting.lam, "gamma": setting.gamma}
    facts |= {"query_descriptors": query_descriptors, "backbone": extractor.name, "global": extractor.global_name}
    facts.pop("probability", None)
    if taken:
        shown = described.scenes[asked]
        pairs = calibration.JudgedPairs.of_lists(found.scores, described.scenes[chosen_on.ranks], shown)
        try:
            fitted, text = pairs.fit(threshold, query_descriptors)
        except UserError as error:
            print(f"without probabilities: {error}")
        else:
            print(text)
            facts["probability"] = {**fitted.facts(), "descriptors": descriptors.database}
    if statistics:
        facts["statistics"] = statistics.fingerprint()
    print(weights.save_model(model, out, facts))
    if statistics:
        statistics.save(out / backbone.STATISTICS_FILE)
