"""What a training run leaves: every method scored on the test split, a table, and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from ames_jax.data.shards import open_split
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES
from ames_jax.model.matching import GAMMAS as KERNEL_GAMMAS
from ames_jax.model.matching import Whitening, kernel_scores
from ames_jax.report.comparison import KILOBYTE, Comparison, Method
from ames_jax.report.curves import Curve, TrainingRun, draw_training
from ames_jax.report.gallery import draw_gallery, gallery_query, pick_queries
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.report.tradeoff import draw_tradeoff
from ames_jax.retrieval.judgements import find_hits, judge
from ames_jax.retrieval.metrics import average_precision
from ames_jax.retrieval.ranking import Setting, rerank, tune
from ames_jax.retrieval.scoring import Scorer
from ames_jax.retrieval.sets import EvaluationSet, Limits, sample_descriptors
from ames_jax.training.log import read_history
from ames_jax.training.run import GAMMAS, LAMBDAS

# (queries, database, shortlists) → logits [Nq, K], or {threshold: logits} for a kernel
Score = Callable[[DescriptorSet, DescriptorSet, np.ndarray], np.ndarray | Mapping[float, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to score pairs.

    Attributes:
      name, kind, bytes_per_descriptor: as in `Method`.
      score: from truncated sets and shortlists to logits.
      prepare: what is stored of a data set's descriptors (bits, or as they are).
      gammas: γ that are tried.
      all_query_counts: measure at every number of query descriptors, not at the largest alone.
    """

    name: str
    kind: str
    bytes_per_descriptor: int
    score: Score
    prepare: Callable[[DescriptorSet], DescriptorSet]
    gammas: tuple[float, ...]
    all_query_counts: bool


def write_report(settings: ConfigDict, root: Path, workdir: Path, teacher: AMES, student: AMES) -> None:
    """Scores global only, teacher, student and hand-made matching on the test split; writes and prints what came out.

    Writes results.json, results.md, tradeoff.png, gallery.png and training.png into `workdir`. λ, γ and the kernels'
    thresholds are chosen on the validation split alone.
    """
    test = EvaluationSet.load(root, "test")
    validation = EvaluationSet.load(root, "validation", Limits(queries=settings.validation_queries))
    shortlist = min(settings.shortlist, test.ranks.shape[1], validation.ranks.shape[1])
    # Two at a time: while a program of one is compiled, on one core, another scores.
    with ThreadPoolExecutor(2) as pool:
        tasks = [
            pool.submit(measure, c, settings, validation, test, shortlist) for c in contestants(root, teacher, student)
        ]
        measured = [task.result() for task in tasks]
    methods = tuple(method for contestant in measured for method in contestant.methods)
    comparison = Comparison(
        test.name, "mAP", test.first_stage, [test.map_of(test.ranks)], shortlist, test.ceiling(shortlist), methods
    )
    table = markdown_table(comparison)
    (workdir / "results.md").write_text(table)
    results = {
        "dataset": test.name, "split": "test", "queries": len(test.ranks), "database_images": len(test.database_ids),
        "first_stage": {"name": test.first_stage, "map": comparison.global_only[0]}, "shortlist": shortlist,
        "ceiling": comparison.ceiling, "rows": table_rows(comparison), "settings": [s for m in measured for s in m.settings],
    }  # fmt: skip
    (workdir / "results.json").write_text(json.dumps(results, indent=1))
    draw_tradeoff(comparison, workdir / "tradeoff.png")
    draw_curves(workdir, validation, shortlist)
    written = ["results.md", "results.json", "tradeoff.png", "training.png"]
    print(f"\n{table}")
    if (root / "images" / f"{test.query_ids[0]}.jpg").exists():
        of_student = next(m for m in measured if m.contestant.kind == "student")
        draw_ranked(settings.gallery_queries, root, workdir, of_student, test)
        written.append("gallery.png")
    else:
        print(f"{root} holds no pictures (images/ID.jpg), so gallery.png is not drawn")
    print("\n".join(str(workdir / name) for name in written))


def contestants(root: Path, teacher: AMES | None, student: AMES) -> list[Contestant]:
    """Teacher (where there is one), student, and hand-made matching of the floats and of the student's very bits."""
    whitening = Whitening.fit(sample_descriptors(open_split(root, "train"), 30_000, 48, seed=0))
    width = student.config.descriptor_width

    def floats(queries: DescriptorSet, database: DescriptorSet, shortlists: np.ndarray) -> Mapping[float, np.ndarray]:
        return kernel_scores(queries, database, shortlists, whitening=whitening)

    as_stored = lambda descriptors: descriptors  # noqa: E731
    bits, bit_bytes = student.tokenizer.binarize, student.config.bits // 8
    found = [
        Contestant("student", "student", bit_bytes, model_score(student), bits, GAMMAS, True),
        Contestant("hand-made, floats", "kernel on floats", 2 * width, floats, as_stored, KERNEL_GAMMAS, True),
        Contestant("hand-made, bits", "kernel on bits", bit_bytes, kernel_scores, bits, KERNEL_GAMMAS, True),
    ]  # fmt: skip
    if teacher is None:
        return found
    bytes_of_token = 2 * teacher.config.model_width
    return [Contestant("teacher", "teacher", bytes_of_token, model_score(teacher), as_stored, GAMMAS, False), *found]


def model_score(model: AMES) -> Score:
    """The model as a way to score pairs."""
    scorer = Scorer(model)
    label = "student" if model.config.bits else "teacher"
    return lambda queries, database, lists: scorer.shortlists(queries, database, lists, progress=f"scoring, {label}")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A contestant's results: rows of the table, the settings chosen on validation, and its lists by (Q, T)."""

    contestant: Contestant
    methods: list[Method]
    settings: list[dict]
    lists: dict[tuple[int, int], np.ndarray]


def measure(
    contestant: Contestant, settings: ConfigDict, validation: EvaluationSet, test: EvaluationSet, shortlist: int
) -> Measured:
    """One contestant at every number of query and database descriptors, each with the setting that validation prefers."""
    most = max(settings.query_descriptors)
    found = Measured(contestant, [], [], {})
    for queries in sorted(settings.query_descriptors) if contestant.all_query_counts else [most]:
        scores = {}
        for count in settings.database_descriptors:
            if queries < most and count != queries:
                continue  # the symmetric pair, to hold against the same database side with more query descriptors
            used, ranks = rerank_test(contestant, validation, test, shortlist, queries, count)
            found.lists[queries, count] = ranks
            scores[count] = [test.map_of(ranks)]
            where = {"method": contestant.name, "query_descriptors": queries, "database_descriptors": count}
            found.settings.append({**where, **dataclasses.asdict(used)})
        name, kind, stored_bytes = contestant.name, contestant.kind, contestant.bytes_per_descriptor
        found.methods.append(Method(name, kind, queries, stored_bytes, scores))
    return found


def rerank_test(
    contestant: Contestant, validation: EvaluationSet, test: EvaluationSet, shortlist: int, queries: int, count: int
) -> tuple[Setting, np.ndarray]:
    """Chooses λ, γ (and threshold) on validation and re-ranks the test lists with them: (setting, ranks [Nq, R])."""

    def scored(split: EvaluationSet) -> np.ndarray | Mapping[float, np.ndarray]:
        query, database = split.queries.truncate(queries), split.database.truncate(count)
        return contestant.score(contestant.prepare(query), contestant.prepare(database), split.shortlists(shortlist))

    grid = {"k": [shortlist], "lam": LAMBDAS, "gamma": contestant.gammas}
    setting, _ = tune(validation.similarities, scored(validation), validation.measure(), **grid)
    logits = scored(test)
    logits = logits[setting.threshold] if isinstance(logits, Mapping) else logits
    return setting, rerank(test.ranks, test.similarities, logits, setting)


def draw_curves(
    workdir: Path, validation: EvaluationSet, shortlist: int, roles: Sequence[str] = ("teacher", "student")
) -> None:
    """training.png, from the logs of these roles in `workdir`."""
    runs = [run for role in roles if (run := training_run(role, workdir / role)) is not None]
    base = validation.map_of(validation.ranks)
    draw_training(validation.name, runs, workdir / "training.png", base, validation.ceiling(shortlist))


def training_run(name: str, directory: Path) -> TrainingRun | None:
    """The curves of a run from its logs, or None where nothing was logged."""
    lines = read_history(directory)
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation_map" in line]

    def curve(some: list[dict], key: str) -> Curve:
        return Curve([line["step"] for line in some], [line[key] for line in some])

    if not steps:
        return None
    return TrainingRun(name, curve(steps, "loss"), curve(steps, "accuracy"), curve(checks, "validation_map"))


def draw_ranked(queries: int, root: Path, workdir: Path, measured: Measured, test: EvaluationSet) -> None:
    """gallery.png: queries before and after re-ranking with as many descriptors of the student as 1 KB holds."""
    stored = measured.contestant.bytes_per_descriptor
    fitting = [key for key in measured.lists if key[1] * stored <= KILOBYTE]
    most, count = max(fitting or measured.lists, key=lambda key: (key[1], key[0]))
    after = measured.lists[most, count]
    before_ap, after_ap = (
        average_precision(find_hits(judge(ranks, test.ground_truth))) for ranks in (test.ranks, after)
    )

    def picture(name: str) -> np.ndarray:
        return cv2.cvtColor(cv2.imread(str(root / "images" / f"{name}.jpg")), cv2.COLOR_BGR2RGB)

    shown = [
        gallery_query(
            picture(test.query_ids[row]),
            lambda database_row: picture(test.database_ids[database_row]),
            test.ranks[row], after[row], set(test.ground_truth[row]["ok"]), (100 * before_ap[row], 100 * after_ap[row]),
        )
        for row in pick_queries(before_ap, after_ap, queries)
    ]  # fmt: skip
    method = f"student, {most} query × {count} database descriptors ({count * stored} B an image)"
    draw_gallery(test.name, method, shown, workdir / "gallery.png")
