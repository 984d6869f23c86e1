"""The report of a training run: every method scored on the test split, a table, and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from ames_jax.model.elvis import ELViS
from ames_jax.model.kinds import Model
from ames_jax.model.matches import Matching
from ames_jax.report.comparison import KILOBYTE, compare
from ames_jax.report.curves import draw_training, training_run
from ames_jax.report.gallery import draw_gallery, gallery_query, pick_queries
from ames_jax.report.methods import baseline_matcher
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.report.tradeoff import draw_tradeoff
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import Matcher, ModelMatcher
from ames_jax.retrieval.ranking import reordered
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import Measured, tune_all
from ames_jax.runtime.files import write_file, write_json
from ames_jax.runtime.progress import Progress


def write_report(settings: ConfigDict, root: Path, workdir: Path, teacher: Model, student: Model) -> None:
    """Scores global only, teacher, student and hand-made matching on the test split; writes and prints what came out.

    Writes results.json, results.md, tradeoff.png, gallery.png and training.png into `workdir`. λ, γ and the forms and
    thresholds of hand-made matching are chosen on the validation split alone.
    """
    test = RetrievalSet.load(root, "test")
    validation = RetrievalSet.load(root, "validation", queries=settings.validation_queries)
    shortlist = min(settings.shortlist, test.ranks.shape[1], validation.ranks.shape[1])
    queries, counts = settings.query_descriptors, settings.database_descriptors
    work = plan(matchers(teacher, student, test), queries, counts)
    with Progress("reading the descriptors of the report"):
        held = [data.in_memory(max(queries), max(counts)) for data in (validation, test)]
    measured = tune_all(work, *held, shortlist)
    comparison = compare(test, measured, test.protocols[0])
    table = f"{markdown_table(comparison)}\n{chosen_forms(measured)}"
    write_file(workdir / "results.md", table)
    results = {
        "dataset": test.name, "split": "test", "queries": len(test.ranks), "database_images": len(test.database),
        "first_stage": {"name": test.first_stage, "map": comparison.global_only[0]}, "shortlist": shortlist,
        "ceiling": comparison.ceiling, "rows": table_rows(comparison), "settings": setting_rows(measured),
    }  # fmt: skip
    write_json(workdir / "results.json", results)
    draw_tradeoff(comparison, workdir / "tradeoff.png")
    draw_curves(workdir, validation, shortlist)
    written = ["results.md", "results.json", "tradeoff.png", "training.png"]
    print(f"\n{table}")
    if (root / "images" / f"{test.queries.ids()[0]}.jpg").exists():
        draw_ranked(
            settings.gallery_queries, root, workdir, [one for one in measured if one.matcher.kind == "student"], test
        )
        written.append("gallery.png")
    else:
        print(f"{root} holds no pictures (images/ID.jpg), so gallery.png is not drawn")
    print("\n".join(str(workdir / name) for name in written))


def matchers(teacher: Model | None, student: Model, data: RetrievalSet) -> list[Matcher]:
    """Teacher (where there is one), student, and hand-made matching of the floats and of the student's very bits."""
    kind = "ELViS, " if isinstance(student, ELViS) else ""
    binary = ModelMatcher(student, "matching" if isinstance(student, Matching) else f"{kind}student")
    found = [binary, *(baseline_matcher(packer, data) for packer in (None, binary.packer))]
    return found if teacher is None else [ModelMatcher(teacher, f"{kind}teacher"), *found]


def plan(
    matchers: Sequence[Matcher], query_descriptors: Collection[int], database_descriptors: Collection[int]
) -> list[tuple[Matcher, Counts]]:
    """Work for `tune_all`: every number of database descriptors with the most query descriptors; all but a teacher also the
    symmetric pairs, to hold against the same database side with more query descriptors."""
    most = max(query_descriptors)
    return [
        (matcher, Counts(queries, count))
        for matcher in matchers
        for queries in sorted(query_descriptors)
        for count in database_descriptors
        if queries == most or (queries == count and matcher.kind != "teacher")
    ]


def setting_rows(measured: Sequence[Measured]) -> list[dict]:
    """The chosen settings as plain values."""
    return [
        {
            "method": one.matcher.name,
            "query_descriptors": one.counts.query,
            "database_descriptors": one.counts.database,
            **dataclasses.asdict(one.setting),
        }
        for one in measured
    ]


def chosen_forms(measured: Sequence[Measured]) -> str:
    """Names the form of hand-made matching that validation chose for each number of descriptors, one line per method."""
    chosen: dict[str, list[str]] = {}
    for one in measured:
        if one.setting.threshold is not None:
            counts = f"{one.counts.query} × {one.counts.database}"
            chosen.setdefault(one.matcher.name, []).append(f"{counts}: {one.setting.threshold}")
    return "".join(f"{name}, as validation chose it: {'; '.join(forms)}.\n" for name, forms in chosen.items())


def draw_curves(
    workdir: Path, validation: RetrievalSet, shortlist: int, roles: Sequence[str] = ("teacher", "student")
) -> None:
    """training.png, from the logs of these roles in `workdir`."""
    runs = [run for role in roles if (run := training_run(role, workdir / role)) is not None]
    base = validation.figures()[validation.protocols[0].name]
    draw_training(validation.name, runs, workdir / "training.png", base, validation.ceiling(shortlist))


def draw_teacher_curves(config: ConfigDict, root: Path, workdir: Path) -> None:
    """training.png of a run that trains a teacher alone."""
    validation = RetrievalSet.load(root, "validation", queries=config.validation.queries)
    draw_curves(workdir, validation, config.validation.shortlist, ["teacher"])
    print(workdir / "training.png")


def draw_ranked(queries: int, root: Path, workdir: Path, student: Sequence[Measured], test: RetrievalSet) -> None:
    """gallery.png: queries before and after re-ranking with as many descriptors of the student as 1 KB holds."""
    fitting = [one for one in student if one.stored_bytes <= KILOBYTE]
    shown = max(fitting or student, key=lambda one: one.counts[::-1])
    after = reordered(np.asarray(test.ranks), shown.order)
    before_ap, after_ap = test.average_precisions(), test.average_precisions(shown.order)
    query_ids, database_ids = test.queries.ids(), test.database.ids()

    def picture(name: str) -> np.ndarray:
        return cv2.cvtColor(cv2.imread(str(root / "images" / f"{name}.jpg")), cv2.COLOR_BGR2RGB)

    pictured = [
        gallery_query(
            picture(query_ids[row]),
            lambda database_row: picture(database_ids[database_row]),
            test.ranks[row], after[row], test.right_rows(row), (100 * before_ap[row], 100 * after_ap[row]),
        )
        for row in pick_queries(before_ap, after_ap, queries)
    ]  # fmt: skip
    method = (
        f"student, {shown.counts.query} query × {shown.counts.database} database descriptors "
        f"({shown.stored_bytes} B per image)"
    )
    draw_gallery(test.name, method, pictured, workdir / "gallery.png")
