"""How good search is: mAP on the embedded landmarks' pictures, from JPEG files to rankings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ames_jax.data.shards import open_split, read_about
from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone, ExtractedImage
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.images import load_image
from ames_jax.extraction.sift import SHIPPED as SHIPPED_STATISTICS
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.index.first_stage import make_empty
from ames_jax.index.model_choice import ChosenModel
from ames_jax.model.matching import GAMMAS as KERNEL_GAMMAS
from ames_jax.model.matching import kernel_scores
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.ranking import rerank, tune
from ames_jax.retrieval.scoring import Scorer
from ames_jax.retrieval.sets import EvaluationSet
from ames_jax.runtime.errors import UserError
from ames_jax.training.run import GAMMAS, LAMBDAS

PICTURES_AT_A_TIME = 64


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is measured: database descriptors an image, query descriptors, images re-ranked."""

    counts: Sequence[int] = (50, 64)
    query_descriptors: int = 100
    shortlist: int = 100


def measure_quality(chosen: ChosenModel, root: Path, asked: Asked) -> list[dict[str, Any]]:
    """Rows of method, descriptors, bytes an image, setting and mAP (percent) on the test pictures of the data set `root`.

    Pictures are read and extracted as those of a user, then globally searched with FAISS and re-ranked from their bits.
    λ, γ and the match kernel's threshold are chosen on the validation pictures, for model and kernel alike.
    """
    backbone = open_backbone("sift", statistics=_statistics(chosen, root))
    packer = BitPacker(chosen.model)
    validation, test = (pictures_of(root, stage, backbone, packer, asked) for stage in ("validation", "test"))
    scorer = Scorer(chosen.model)

    def kernel(queries: DescriptorSet, database: DescriptorSet, lists: np.ndarray) -> Mapping[float, np.ndarray]:
        return kernel_scores(queries, database, lists)

    methods = [("hand-made matching", kernel, KERNEL_GAMMAS), ("AMES", scorer.shortlists, GAMMAS)]
    rows = [{"method": f"global only: {backbone.global_name}", "map": test.map_of(test.ranks)}]
    for name, score, gammas in methods:
        for count in asked.counts:
            shortlist = min(asked.shortlist, validation.ranks.shape[1], test.ranks.shape[1])
            first, second = (
                score(split.queries, split.database.truncate(count), split.shortlists(shortlist))
                for split in (validation, test)
            )
            grid = {"k": [shortlist], "lam": LAMBDAS, "gamma": gammas}
            setting, _ = tune(validation.similarities, first, validation.measure(), **grid)
            logits = second[setting.threshold] if isinstance(second, Mapping) else second
            ranks = rerank(test.ranks, test.similarities, logits, setting)
            stored = count * packer.config.bits // 8
            facts = {"descriptors": count, "bytes": stored, "lam": setting.lam, "gamma": setting.gamma}
            rows.append({"method": name, **facts, "threshold": setting.threshold, "map": test.map_of(ranks)})
    return rows


def pictures_of(root: Path, stage: str, backbone: Backbone, packer: BitPacker, asked: Asked) -> EvaluationSet:
    """One evaluation of the data set `root`, made anew from the pictures of its queries and database images."""
    truth = json.loads((root / "ground_truth" / f"{stage}.json").read_text(encoding="utf-8"))
    ids = {side: open_split(root, truth[side]).ids() for side in ("query", "database")}
    found = {side: _extract(root, names, backbone, f"{stage} {side} pictures") for side, names in ids.items()}
    vectors = {side: np.stack([image.global_descriptor for image in images]) for side, images in found.items()}
    faiss_index = make_empty("flat", vectors["database"])
    faiss_index.add(vectors["database"])
    similarities, ranks = faiss_index.search(vectors["query"], len(ids["database"]))
    counts = {"query": asked.query_descriptors, "database": max(asked.counts)}
    local = {
        side: packer.pack(stack([DescriptorSet(image.local.features) for image in images], counts[side]))
        for side, images in found.items()
    }
    return EvaluationSet(
        read_about(root)["name"], backbone.global_name, root, local["query"], local["database"],
        np.arange(len(ranks[0])), ids["query"], ids["database"], ranks, similarities, truth["queries"],
    )  # fmt: skip


def _extract(root: Path, names: Sequence[str], backbone: Backbone, label: str) -> list[ExtractedImage]:
    paths = [root / "images" / f"{name}.jpg" for name in names]
    found = []
    with tqdm(total=len(paths), desc=label, unit="image", leave=False) as bar:
        for start in range(0, len(paths), PICTURES_AT_A_TIME):
            images = backbone.extract([load_image(path) for path in paths[start : start + PICTURES_AT_A_TIME]])
            found += images
            bar.update(len(images))
    return found


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
