"""One evaluation of a data set, held in memory: queries, database images, the first stage's lists, the ground truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import DescriptorSource, open_split, read_about
from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.errors import UserError
from ames_jax.metrics import mean_average_precision, measure_order, shortlist_ceiling
from ames_jax.ranking import Measure


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Queries to re-rank.

    Attributes:
      name: of the data set, as results print it.
      first_stage: name of the global search behind the lists.
      root: folder of the data set.
      query_split, database_split: names of the splits.
      queries: [Nq, K, ·]; database: [N, K, ·]; NumPy, features as stored.
      query_ids, database_ids: ids of the images.
      ranks: int [Nq, R], database rows in the order of the first stage; similarities: float [Nq, R], falling.
      ground_truth: a dict of row lists ("ok", "junk") a query.
    """

    name: str
    first_stage: str
    root: Path
    query_split: str
    database_split: str
    queries: DescriptorSet
    database: DescriptorSet
    query_ids: list[str]
    database_ids: list[str]
    ranks: np.ndarray
    similarities: np.ndarray
    ground_truth: list[dict[str, list[int]]]

    @classmethod
    def load(cls, root: Path, name: str) -> EvaluationSet:
        """Reads `ground_truth/NAME.json` and what it names.

        Raises:
          UserError: there is no such evaluation, or its parts are not of the same images.
        """
        path = root / "ground_truth" / f"{name}.json"
        if not path.is_file():
            found = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
            raise UserError(f"{path}: no such evaluation; {root} has: {found}")
        truth = json.loads(path.read_text())
        query, database = open_split(root, truth["query"]), open_split(root, truth["database"])
        lists = open_neighbours(root / "neighbours" / f"{truth['query']}.{truth['database']}")
        if not len(query) == len(lists) == len(truth["queries"]):
            raise UserError(
                f"{path}: {len(truth['queries'])} queries, but {len(query)} images in split {truth['query']} "
                f"and {len(lists)} neighbour lists"
            )
        about = read_about(root)
        return cls(
            about["name"], about.get("global", "the given lists"), root, truth["query"], truth["database"],
            read_all(query), read_all(database), query.ids(), database.ids(),
            np.asarray(lists.indices), np.asarray(lists.similarities), truth["queries"],
        )  # fmt: skip

    def head(self, queries: int) -> EvaluationSet:
        """The first stage's lists of every n-th query, so that at most `queries` are left, spread over the set."""
        if queries >= len(self.ranks):
            return self
        rows = np.linspace(0, len(self.ranks) - 1, queries).round().astype(int)
        return dataclasses.replace(
            self, queries=self.queries[rows], query_ids=[self.query_ids[i] for i in rows], ranks=self.ranks[rows],
            similarities=self.similarities[rows], ground_truth=[self.ground_truth[i] for i in rows],
        )  # fmt: skip

    def measure(self) -> Measure:
        """mAP ("map", percent) of an order of the lists' columns, for `ranking.sweep` and `ranking.tune`."""
        return measure_order(self.ranks, self.ground_truth)

    def map_of(self, ranks: np.ndarray) -> float:
        """mAP in percent of ranked database rows [Nq, R]."""
        return mean_average_precision(ranks, self.ground_truth)

    def ceiling(self, shortlist: int) -> float:
        """Percent of the right images that the first `shortlist` hold: what a perfect re-ranking could reach."""
        return shortlist_ceiling(self.ranks, self.ground_truth, shortlist)


def read_all(source: DescriptorSource) -> DescriptorSet:
    """Every image of a split as one set [N, K, ·] without geometry; `valid` is None when all are real."""
    images = stack(
        [
            DescriptorSet(r.descriptors.features, r.descriptors.valid)
            for r in map(source.__getitem__, range(len(source)))
        ]
    )
    return DescriptorSet(images.features) if images.valid is None or images.valid.all() else images


def sample_descriptors(source: DescriptorSource, count: int, per_image: int, seed: int) -> np.ndarray:
    """float32 [≤ count, D]: real descriptors of random images, the strongest `per_image` of each; for whitening and ITQ."""
    order = np.random.default_rng(seed).permutation(len(source))[: -(-count // per_image)]
    rows = []
    for row in sorted(order):
        image = source[int(row)].descriptors.truncate(per_image)
        features = np.asarray(image.features, np.float32)
        rows.append(features if image.valid is None else features[image.valid])
    return np.concatenate(rows)[:count]
