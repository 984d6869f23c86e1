"""Methods side by side on photographs of several collections, each measured at the settings that other pictures prefer.

Photographs of one source resemble each other, so a setting, or a model, that was chosen on a collection says little about
pictures that nobody has seen. Here every figure of a collection is one of pictures that took no part in choosing: settings
come from the other collections, or from pictures that are given for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ames_jax.report.comparison import format_bytes
from ames_jax.report.tables import markdown
from ames_jax.retrieval.grid import LAMBDAS, Counts, Grid
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.ranking import Setting
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import orders
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress


@dataclass(frozen=True)
class HeldOut:
    """A method on every query, at the setting that the other collections prefer.

    Attributes:
      method: as the table prints it; stored_bytes: of local descriptors per image.
      precisions: float64 [Nq], average precision in 0..1.
      settings: by collection; empty for a method without settings.
    """

    method: str
    stored_bytes: int
    precisions: np.ndarray
    settings: dict[str, Setting]

    def figures(self, collections: np.ndarray) -> dict[str, float]:
        """mAP in percent by collection, then over all queries ("all") and over collections alike ("mean")."""
        names = sorted(set(collections.tolist()))
        each = {name: 100 * float(self.precisions[collections == name].mean()) for name in names}
        return each | {"all": 100 * float(self.precisions.mean()), "mean": float(np.mean(list(each.values())))}


def collection_of(scene: str) -> str:
    """The collection of a scene's folder: its name before "__", or else before the first "_"."""
    return scene.partition("__" if "__" in scene else "_")[0]


def measure(
    work: Sequence[tuple[Matcher, Counts]],
    data: RetrievalSet,
    collections: np.ndarray,
    k: int,
    validation: RetrievalSet | None = None,
) -> list[HeldOut]:
    """Every matcher with its numbers of descriptors on k images per query.

    collections: str [Nq], of each query. A setting is λ, γ and the matcher's threshold or form: the one with the highest mAP
    on `validation`, or without it with the highest mean of the other collections' mAP.
    Raises UserError for a single collection without `validation`.
    """
    if validation is None and len(set(collections.tolist())) < 2:
        raise UserError(
            f"--photos: all scenes are of one collection, {collections[0]}, and settings are chosen on the others; name scene "
            "folders COLLECTION__SCENE, of two collections or more, or give other scenes with --validation"
        )
    found, keeper = [], ScoreKeeper(shared=False)
    with Progress("methods on every collection", len(work), "measurements") as progress:
        for matcher, counts in progress.over(work):
            settings, precisions = _of_every_setting(keeper, data, matcher, counts, k)
            if validation is None:
                kept, chosen = hold_out(precisions, collections)
            else:
                best = int(_of_every_setting(keeper, validation, matcher, counts, k)[1].mean(axis=1).argmax())
                kept, chosen = precisions[best], dict.fromkeys(np.unique(collections).tolist(), best)
            name = f"{matcher.name}, {counts.query} × {counts.database}"
            by_name = {collection: settings[place] for collection, place in chosen.items()}
            found.append(HeldOut(name, matcher.stored_bytes(counts.database), kept, by_name))
    return found


def _of_every_setting(
    keeper: ScoreKeeper, data: RetrievalSet, matcher: Matcher, counts: Counts, k: int
) -> tuple[list[Setting], np.ndarray]:
    """Settings, and the average precision of every query at each, float64 [settings, Nq]."""
    scores = keeper.scores(data, matcher, k, counts)
    found = orders(data, scores, Grid((k,), LAMBDAS, matcher.gammas), matcher.thresholds)
    settings, precisions = zip(*((setting, data.average_precisions(order)) for setting, order in found))
    return list(settings), np.stack(precisions)


def hold_out(precisions: np.ndarray, collections: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """The precision of each query at the setting that the other collections prefer, float64 [Nq], and that setting's row.

    precisions: float64 [settings, Nq]; collections: str [Nq]. Each of the other collections counts alike; of equal settings the
    first is taken.
    """
    names = sorted(set(collections.tolist()))
    means = {name: precisions[:, collections == name].mean(axis=1) for name in names}
    kept, chosen = np.empty(precisions.shape[1]), {}
    for name in names:
        chosen[name] = int(np.mean([means[other] for other in names if other != name], axis=0).argmax())
        mine = collections == name
        kept[mine] = precisions[chosen[name], mine]
    return kept, chosen


def table(found: Sequence[HeldOut], collections: np.ndarray) -> str:
    """mAP in percent as a Markdown table: one row per method, one column per collection with its number of queries."""
    names, counts = np.unique(collections, return_counts=True)
    rows = [
        {"method": one.method, "bytes": format_bytes(one.stored_bytes) if one.stored_bytes else "0"}
        | {name: f"{value:.1f}" for name, value in one.figures(collections).items()}
        for one in found
    ]
    headings = {"method": "method", "bytes": "bytes per image", "all": f"all ({counts.sum()})", "mean": "mean"}
    return markdown(rows, headings | {str(name): f"{name} ({count})" for name, count in zip(names, counts)})


def rows(found: Sequence[HeldOut], collections: np.ndarray) -> list[dict[str, Any]]:
    """The same as plain values, with the settings and the average precision of every query."""
    return [
        {"method": one.method, "bytes": one.stored_bytes, "map": one.figures(collections)}
        | {"settings": {name: vars(setting) for name, setting in one.settings.items()}}
        | {"average_precision": one.precisions.round(4).tolist()}
        for one in found
    ]
