"""Two pictures, one score: what a search would give the second for the first."""

from __future__ import annotations

import dataclasses
from typing import Any

from ames_jax.descriptors import stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.sift import SiftBackbone
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.queries import as_picture, check_local
from ames_jax.model.released import folder_of
from ames_jax.retrieval.matchers import ModelMatcher
from ames_jax.retrieval.ranking import ensemble

QUERY_DESCRIPTORS, DATABASE_DESCRIPTORS = 100, 64  # as a search with 1 KB per image


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The similarity of two pictures.

    Attributes:
      score: λ · global_similarity + (1 − λ) · sigmoid(γ · logit), by which a search ranks.
      global_similarity: cosine of the global descriptors; logit: of the model.
    """

    score: float
    global_similarity: float
    logit: float


def compare(query: Any, image: Any, model: str = "sift", *, backbone: Backbone | None = None) -> Comparison:
    """Compares two pictures: `compare("a.jpg", "b.jpg")`.

    The first is the query, the second the database image: they may be swapped, but the score then differs a little.

    Args:
      query, image: files, arrays or Pillow's pictures, as `queries.as_picture` takes them.
      model: as `load_model` takes it; by default the one for SIFT that comes with the package.
      backbone: extracts both pictures; by default the one that the model was trained on.

    Raises:
      UserError: a picture that cannot be read, no such model, a model that does not say its backbone, or its λ and γ.
    """
    chosen = ChosenModel.load(model, "sift")
    backbone = backbone or _backbone_of(chosen)
    statistics = backbone.statistics.fingerprint() if isinstance(backbone, SiftBackbone) else None
    chosen.check({"backbone": backbone.name}, statistics)
    first, second = backbone.extract([as_picture(query), as_picture(image)])
    matcher = ModelMatcher(chosen.model, chosen.name)
    # Padded, so that one program is compiled whatever the pictures hold.
    local = stack([check_local(first.local, chosen.model.config)], QUERY_DESCRIPTORS)[0]
    stored = matcher.stored(stack([check_local(second.local, chosen.model.config)], DATABASE_DESCRIPTORS))
    similarity = first.global_descriptor @ second.global_descriptor
    logits = matcher.shortlist(local, stored)
    [score] = ensemble(similarity[None], logits, chosen.lam, chosen.gamma)
    return Comparison(float(score), float(similarity), float(logits[0]))


def _backbone_of(chosen: ChosenModel) -> Backbone:
    name = chosen.facts.get("backbone") or chosen.facts.get("released", chosen.name).partition("_ames")[0]
    return open_backbone(name, statistics=folder_of(chosen.name) / STATISTICS_FILE if name == "sift" else None)
