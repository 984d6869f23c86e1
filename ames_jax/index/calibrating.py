"""The probability that a hit shows what the query shows: fitted on an index's own pictures, where their labels are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ames_jax.index.changes import changing
from ames_jax.index.index_json import publish
from ames_jax.index.searcher import Searcher
from ames_jax.retrieval.calibration import Calibration, JudgedPairs
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress


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


def keep(path: Path, calibration: Calibration) -> None:
    """Makes a calibration part of an index; raises UserError where another process changes it."""
    with changing(path) as index:
        publish(index.path, {**index.facts, "probability": calibration.facts()})
