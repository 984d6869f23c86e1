"""Pictures compared: two by the score that a search would give, and those of an index with each other, for groups that are
nearly the same and for what their labels say of scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.descriptors import stack
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.sift import SiftBackbone
from ames_jax.index.collection import SearchIndex
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.queries import as_picture, check_local
from ames_jax.index.searcher import Searcher
from ames_jax.model.released import folder_of
from ames_jax.retrieval.calibration import JudgedPairs
from ames_jax.retrieval.matchers import ModelMatcher
from ames_jax.retrieval.ranking import ensemble
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress

QUERY_DESCRIPTORS, DATABASE_DESCRIPTORS = 100, 64  # as a search with 1 KB per image
# Near-duplicates are looked for among so many of the most similar images of each, so many images at a time.
NEIGHBOURS, BLOCK = 16, 256
# Of the bits of a descriptor, the share that may differ where the same spot was pictured in another size or quality.
DIFFERENT = 0.15


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


def find_duplicates(index: SearchIndex, similarity: float = 0.5, share: float = 0.5) -> list[list[str]]:
    """Groups of ids of pictures that are nearly the same, in the order of the index; images without descriptors have none.

    Args:
      similarity: least similarity of the global descriptors of two images that are compared.
      share: least share of the descriptors of the image with fewer of them for which the other has one of nearly the same
        bits. Images of one group are joined by such pairs, and need not all be like one another.
    """
    head = np.arange(len(index))  # the first image of each one's group
    with Progress("comparing", len(index), "images") as progress:
        for start in range(0, len(index), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(index)))
            similarities, found = index.global_index.search(index.global_index[rows], NEIGHBOURS)
            pairs = {
                (min(row, other), max(row, other))
                for row, others, values in zip(rows.tolist(), found.tolist(), similarities)
                for other, value in zip(others, values)
                if other not in (row, -1) and value >= similarity
            }
            _join(index, sorted(pairs), head, share)
            progress.update(len(rows))
    groups: dict[int, list[str]] = {}
    for row, name in enumerate(index.ids):
        groups.setdefault(_head_of(head, row), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _join(index: SearchIndex, pairs: list[tuple[int, int]], head: np.ndarray, share: float) -> None:
    """Joins the groups of those pairs that are near-duplicates."""
    needed, places = np.unique(np.array(pairs, np.int64).reshape(-1, 2), return_inverse=True)
    images = index.read(needed)
    sets = [bits[valid] for bits, valid in zip(images.features, images.valid)]
    for (row, other), (a, b) in zip(pairs, places.reshape(-1, 2)):
        first, second = sorted((_head_of(head, row), _head_of(head, other)))
        if first != second and shared_descriptors(sets[a], sets[b]) >= share:
            head[second] = first


def _head_of(head: np.ndarray, row: int) -> int:
    while head[row] != row:
        head[row] = head[head[row]]
        row = int(head[row])
    return row


def shared_descriptors(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the descriptors of the image with fewer of them for which the other has one of nearly the same bits.

    first, second: bits uint8 [N, bits / 8] of two images; 0 where one has none.
    """
    few, many = sorted((first, second), key=len)
    if not len(few):
        return 0.0
    different = np.bitwise_count(few[:, None] ^ many[None]).sum(axis=2, dtype=np.int64)
    return float((different.min(axis=1) <= DIFFERENT * 8 * few.shape[1]).mean())


def judged_pairs(
    searcher: Searcher, label_of: Callable[[str], str | None], queries: int, pictures: Path | None = None
) -> JudgedPairs:
    """Pairs of indexed pictures, each searched for among the others, and the labelled images of its shortlist.

    Args:
      label_of: the label of an image by its id, None where it has none.
      queries: so many of the labelled images are searched for, spread over them.
      pictures: folder of the index's pictures, where they have moved.

    Raises:
      UserError: fewer than two labels, or a picture that is gone.
    """
    index = searcher.index
    labels = [label_of(name) for name in index.ids]
    number = {label: place for place, label in enumerate(dict.fromkeys(label for label in labels if label))}
    if len(number) < 2:
        raise UserError(f"{index.path}: {len(number)} labels among {len(index):,} images; expected two or more")
    labelled = [row for row, label in enumerate(labels) if label]
    rows = [labelled[place] for place in np.unique(np.linspace(0, len(labelled) - 1, queries).round().astype(int))]
    with Progress("searching", len(rows), "queries") as progress:
        paths = [index.picture_path(row, pictures) for row in rows]
        results = searcher.search_many(paths, searcher.shortlist, progress.update)
    pairs = [
        (hit.logit, labels[hit.row] == labels[row], place)
        for place, (row, result) in enumerate(zip(rows, results))
        for hit in result.hits
        if hit.logit is not None and labels[hit.row] and hit.row != row
    ]
    logits, right, query = (np.array(values) for values in zip(*pairs, strict=True))
    group = np.array([number[labels[row]] for row in rows])
    return JudgedPairs(logits.astype(np.float32), right, query, group)
