"""Quality of search: mAP on the embedded landmarks' pictures, from JPEG files to rankings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ames_jax.data.readers import MemoryReader
from ames_jax.data.shards import open_split, read_about
from ames_jax.descriptors import stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.sift import SHIPPED as SHIPPED_STATISTICS
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.index.first_stage import make_empty
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.picture_sets import describe
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.matchers import ModelMatcher
from ames_jax.retrieval.maxsim import MaxSimMatcher
from ames_jax.retrieval.protocols import METRICS
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import tune_all
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json


@dataclasses.dataclass(frozen=True)
class QualityWork:
    """Measurements: database descriptors per image, query descriptors, images re-ranked."""

    counts: Sequence[int] = (50, 64)
    query_descriptors: int = 100
    shortlist: int = 100


def measure_quality(chosen: ChosenModel, root: Path, asked: QualityWork) -> list[dict[str, Any]]:
    """Rows of method, descriptors, bytes per image, setting and mAP (percent) on the test pictures of the data set `root`.

    Pictures are read and extracted as those of a user, then globally searched with FAISS and re-ranked from their bits.
    λ, γ and the form and threshold of hand-made matching are chosen on the validation pictures, for all alike.
    """
    backbone = open_backbone("sift", statistics=_statistics(chosen, root))
    validation, test = (pictures_of(root, stage, backbone) for stage in ("validation", "test"))
    shortlist = min(asked.shortlist, validation.ranks.shape[1], test.ranks.shape[1])
    model = ModelMatcher(chosen.model, "AMES")
    matchers = [MaxSimMatcher("hand-made matching", packer=model.packer), model]
    work = [(matcher, Counts(asked.query_descriptors, count)) for matcher in matchers for count in asked.counts]
    rows: list[dict[str, Any]] = [{"method": f"global only: {backbone.global_name}", "map": test.figures()["mAP"]}]
    for found in tune_all(work, validation, test, shortlist):
        setting = found.setting
        facts = {"descriptors": found.counts.database, "bytes": found.stored_bytes}
        facts |= {"lam": setting.lam, "gamma": setting.gamma, "threshold": setting.threshold}
        rows.append({"method": found.matcher.name, **facts, "map": found.figures["mAP"]})
    return rows


def pictures_of(root: Path, stage: str, backbone: Backbone) -> RetrievalSet:
    """One evaluation of the data set `root`, made anew from the pictures of its queries and database images."""
    truth, local, vectors = read_json(root / "ground_truth" / f"{stage}.json"), {}, {}
    for side in ("query", "database"):
        paths = [root / "images" / f"{name}.jpg" for name in open_split(root, truth[side]).ids()]
        images, vectors[side] = describe(paths, backbone, f"{stage} {side} pictures")
        local[side] = MemoryReader(stack(images))
    search = make_empty("flat", vectors["database"])
    search.add(vectors["database"])
    similarities, ranks = search.search(vectors["query"], len(vectors["database"]))
    return RetrievalSet(
        name=read_about(root)["name"],
        first_stage=backbone.global_name,
        ranks=ranks,
        similarities=similarities,
        judged=judge(ranks, truth["queries"]),
        protocols=METRICS["map"],
        queries=local["query"],
        database=local["database"],
    )


def _statistics(chosen: ChosenModel, root: Path) -> Path:
    """The SIFT statistics that the model was trained with: the data set's own or the shipped ones."""
    places = [path for path in (root / STATISTICS_FILE, SHIPPED_STATISTICS) if path.is_file()]
    wanted = chosen.facts.get("statistics")
    for path in places:
        if wanted in (None, SiftStatistics.load(path).fingerprint()):
            return path
    raise UserError(
        f"{chosen.name} was trained with SIFT statistics ({wanted and wanted[:8]}) that are neither those of the "
        f"embedded landmarks nor the shipped ones; measure a model that was"
    )
