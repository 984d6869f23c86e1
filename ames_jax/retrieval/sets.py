"""One evaluation of a data set, held in memory: queries, database images, the first stage's lists, the ground truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import DescriptorSource, open_split, read_about
from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.retrieval.metrics import mean_average_precision, measure_order, shortlist_ceiling
from ames_jax.retrieval.ranking import Measure
from ames_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much of an evaluation to hold in memory; None: all of it.

    Attributes:
      queries: queries, spread over those that have a right image.
      shortlist: images of each query's list.
      query_descriptors, database_descriptors: strongest descriptors of each image.
    """

    queries: int | None = None
    shortlist: int | None = None
    query_descriptors: int | None = None
    database_descriptors: int | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Queries to re-rank.

    Attributes:
      name: of the data set, as results print it.
      first_stage: name of the global search behind the lists.
      root: folder of the data set.
      queries: [Nq, K, ·]; database: [M, K, ·], the images of `loaded`; NumPy, features as stored.
      loaded: int [M], rising: the database rows that are in memory.
      query_ids, database_ids: ids of the images (all of the database).
      ranks: int [Nq, R], database rows in the order of the first stage; similarities: float [Nq, R], falling.
      ground_truth: a dict of row lists ("ok", "junk") a query.
    """

    name: str
    first_stage: str
    root: Path
    queries: DescriptorSet
    database: DescriptorSet
    loaded: np.ndarray
    query_ids: list[str]
    database_ids: list[str]
    ranks: np.ndarray
    similarities: np.ndarray
    ground_truth: list[dict[str, list[int]]]

    @classmethod
    def load(cls, root: Path, name: str, limits: Limits | None = None) -> EvaluationSet:
        """Reads `ground_truth/NAME.json` and what it names, within the limits.

        Raises:
          UserError: there is no such evaluation, or its parts are not of the same images.
        """
        limits = limits or Limits()
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
        rows = np.arange(len(query))
        if limits.queries:
            # Spread over the set: a data set's queries often come sorted by what they show.
            rows = np.array([row for row, entry in enumerate(truth["queries"]) if _has_right_image(entry)])
            if not len(rows):
                raise UserError(f"{path}: no query has a right image")
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(limits.queries, len(rows))).round().astype(int))]
        ranks = np.asarray(lists.indices[rows])
        loaded = np.unique(ranks[:, : limits.shortlist]) if limits.shortlist else np.arange(len(database))
        about, query_ids = read_about(root), query.ids()
        return cls(
            about["name"], lists.first_stage(about.get("global")), root,
            read_rows(query, rows, limits.query_descriptors), read_rows(database, loaded, limits.database_descriptors),
            loaded, [query_ids[i] for i in rows], database.ids(), ranks, np.asarray(lists.similarities[rows]),
            [truth["queries"][i] for i in rows],
        )  # fmt: skip

    def shortlists(self, count: int) -> np.ndarray:
        """int [Nq, count]: the first images of each list as rows of `database`."""
        return np.searchsorted(self.loaded, self.ranks[:, :count])

    def measure(self) -> Measure:
        """mAP ("map", percent) of an order of the lists' columns, for `ranking.sweep` and `ranking.tune`."""
        return measure_order(self.ranks, self.ground_truth)

    def map_of(self, ranks: np.ndarray) -> float:
        """mAP in percent of ranked database rows [Nq, R]."""
        return mean_average_precision(ranks, self.ground_truth)

    def ceiling(self, shortlist: int) -> float:
        """Percent of the right images that the first `shortlist` hold: what a perfect re-ranking could reach."""
        return shortlist_ceiling(self.ranks, self.ground_truth, shortlist)


def _has_right_image(entry: dict[str, list]) -> bool:
    return any(entry.get(kind) for kind in ("ok", "easy", "hard"))


def read_rows(source: DescriptorSource, rows: np.ndarray, descriptors: int | None) -> DescriptorSet:
    """Images of a split as one set [n, K, ·] without geometry, cut to `descriptors`; `valid` is None when all are real."""
    sets = [source[int(row)].descriptors for row in rows]
    images = stack([DescriptorSet(s.features, s.valid).truncate(descriptors or s.count) for s in sets])
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
