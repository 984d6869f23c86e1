"""Methods beside each other: their names on the command line, and one row of figures, bytes and speed for each.

On photographs of several collections each is measured at the settings that other pictures prefer. Photographs of one source
resemble each other, so a setting, or a model, that was chosen on a collection says little about pictures that nobody has
seen; here settings come from the other collections, or from pictures that are given for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.model.packing import BitPacker
from ames_jax.model.released import load_model
from ames_jax.report.comparison import format_bytes
from ames_jax.report.tables import markdown
from ames_jax.retrieval import refinement
from ames_jax.retrieval.grid import LAMBDAS, Counts, Grid
from ames_jax.retrieval.hand_made import MaxSimMatcher, RansacMatcher, Whitening
from ames_jax.retrieval.matchers import Matcher, ModelMatcher
from ames_jax.retrieval.ranking import Setting
from ames_jax.retrieval.score_keeper import ScoreKeeper, pairs_per_second
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import orders, tune
from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.imports import named_class
from ames_jax.runtime.progress import Progress

GLOBAL = "global"  # the first stage alone
# Hand-made methods by the name that the configuration gives them; each reads the bits of a model, or whitened floats.
HAND_MADE: dict[str, Callable[..., Matcher]] = {
    "kernel": lambda name, **read: MaxSimMatcher(name, forms=("query",), **read),
    "maxsim": lambda name, **read: MaxSimMatcher(name, forms=("query", "both"), **read),
    "mutual": lambda name, **read: MaxSimMatcher(name, forms=("mutual",), **read),
    "ransac": lambda name, **read: RansacMatcher(name, position_bits=8, **read),
    "ransac16": lambda name, **read: RansacMatcher(name, position_bits=16, **read),
    "floats": lambda name, **read: MaxSimMatcher(name, **read),
}
FLOATS = "floats"  # reads whitened floats whatever else there is
HEADINGS = {
    "method": "method", "first_stage": "first stage", "bytes_per_image": "bytes per image", "parameters": "parameters",
    "pairs_per_second": "pairs/s", "lam": "λ", "gamma": "γ", "threshold": "form",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of a comparison: its name, its matcher (None: the first stage alone), and how its first stage is refined."""

    name: str
    matcher: Matcher | None
    refine: str


def is_one_model(text: str) -> bool:
    """True where `--config.model` names one trained model, False for other methods and for several."""
    if "," in text:
        return False
    [(name, refine)] = _named(text)
    return not (refine or _is_elsewhere(name) or name in (GLOBAL, *HAND_MADE))


def trained_models(text: str) -> list[str]:
    """The trained models among the methods of `--config.model`, each once."""
    names = (name for name, _ in _named(text) if name not in (GLOBAL, *HAND_MADE) and not _is_elsewhere(name))
    return list(dict.fromkeys(names))


def methods_of(text: str, data: RetrievalSet) -> list[Method]:
    """The methods of `--config.model`, names with commas between, each as METHOD or METHOD@REFINEMENT.

    METHOD is a model, one of `HAND_MADE`, `global`, or package.module:Class, a `Matcher` that is called with `data`. Hand-made
    methods read the bits of the first binary model, and `floats` alone, or without such a model all, floats whitened with
    statistics of the set's training images.

    Raises UserError for a name that is none of these.
    """
    pairs, trained = _named(text), trained_models(text)
    elsewhere = {name for name, _ in pairs if _is_elsewhere(name)}
    # By the last part of a path, as one model is; two of the same last part by the whole.
    ends = [Path(name).name for name in trained]
    shown = {name: name if ends.count(end) > 1 else end for name, end in zip(trained, ends)}
    made: dict[str, Matcher | None] = {name: ModelMatcher(load_model(name), shown[name]) for name in trained}
    binary = next((matcher.packer for matcher in made.values() if matcher.packer), None)
    made |= {GLOBAL: None} | {name: _own(name, data) for name in elsewhere}
    hand_made = dict.fromkeys(name for name, _ in pairs if name in HAND_MADE)
    floats = _read(None, data) if FLOATS in hand_made or (hand_made and not binary) else {}
    bits = _read(binary, data) if binary else floats
    made |= {name: HAND_MADE[name](name, **(floats if name == FLOATS else bits)) for name in hand_made}
    return [Method(made[name].name if made[name] else "the first stage alone", made[name], how) for name, how in pairs]


def measure_methods(
    methods: Sequence[Method], keeper: ScoreKeeper, validation: RetrievalSet, test: RetrievalSet, k: int, counts: Counts
) -> list[dict[str, Any]]:
    """One row per method at the λ, γ and threshold that validation prefers, for `results.json`."""
    stages = {"": (validation, test)}
    for refine in {method.refine for method in methods if method.refine}:
        stages[refine] = tuple(refinement.refined_set(data, refine) for data in (validation, test))
    rows = []
    for method in methods:
        of_validation, of_test = stages[method.refine]
        row = {"method": method.name, "first_stage": of_test.first_stage}
        if method.matcher is None:
            rows.append(row | {"bytes_per_image": 0} | of_test.figures())
            continue
        found = tune(keeper, method.matcher, of_validation, of_test, k=k, counts=counts)
        setting = found.setting
        row |= {"rerank": k, "lam": setting.lam, "gamma": setting.gamma, "threshold": setting.threshold}
        row |= {"query_descriptors": counts.query, "database_descriptors": counts.database}
        row |= {"bytes_per_image": found.stored_bytes, "parameters": method.matcher.parameters}
        speed = pairs_per_second(of_test, method.matcher, k, counts)
        rows.append(row | {"pairs_per_second": speed} | found.figures)
    return rows


def methods_table(data: RetrievalSet, rows: Sequence[Mapping[str, Any]], k: int, counts: Counts) -> str:
    """Markdown of `measure_methods`."""
    figures = {protocol.name: f"{protocol.name} (%)" for protocol in data.protocols}
    ceilings = ", ".join(f"{data.ceiling(k, protocol):.1f} ({protocol.name})" for protocol in data.protocols)
    if len({row["first_stage"] for row in rows}) == 1:
        rows = [{**row, "first_stage": None} for row in rows]
    return (
        f"### {data.name}\n\nFirst stage: {data.first_stage}; its first {k} images re-ranked (a perfect re-ranking: "
        f"{ceilings}); {counts.query} query and {counts.database} database descriptors.\n\n"
        f"{markdown(rows, HEADINGS | figures)}\n"
    )


def baseline_matcher(packer: BitPacker | None, data: RetrievalSet) -> MaxSimMatcher:
    """The hand-made opponent on what a model reads: its bits, or floats whitened with statistics of the set's training images.

    A set without training images lends those of its database, and the name says so.
    """
    name = f"hand-made, {'bits' if packer else 'floats'}"
    whitened = "" if packer or data.training else ", whitened on the database"
    return MaxSimMatcher(f"{name}{whitened}", **_read(packer, data))


def _read(packer: BitPacker | None, data: RetrievalSet) -> dict[str, Any]:
    if packer:
        return {"packer": packer}
    return {"whitening": Whitening.of_images(data.training or data.database)}


def _own(name: str, data: RetrievalSet) -> Matcher:
    found = named_class(name, "--config.model")
    if not (isinstance(found, type) and issubclass(found, Matcher)):
        raise UserError(f"--config.model={name}: expected a subclass of ames_jax.retrieval.matchers.Matcher")
    return found(data)


def _is_elsewhere(name: str) -> bool:
    return ":" in name.removeprefix("hf://")


def _named(text: str) -> list[tuple[str, str]]:
    """METHOD and the refinement of its first stage, "" where there is none, of each name; raises UserError for a near miss."""
    named = [_split(name.strip()) for name in text.split(",") if name.strip()]
    for name, _ in named:
        meant = did_you_mean(name, (GLOBAL, *HAND_MADE))
        if meant and name not in (GLOBAL, *HAND_MADE) and not Path(name).exists():
            raise UserError(f"--config.model={name}: no method or model of this name{meant}")
    return named


def _split(name: str) -> tuple[str, str]:
    method, at, refine = name.rpartition("@")
    if not at or name.startswith("hf://") or Path(name).exists():
        return name, ""
    refinement.check_kinds(refine)
    return method, refine


@dataclass(frozen=True)
class HeldOut:
    """A method on every query of several collections, at the setting that the other collections prefer.

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


def measure_collections(
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


def collections_table(found: Sequence[HeldOut], collections: np.ndarray) -> str:
    """mAP in percent as a Markdown table: one row per method, one column per collection with its number of queries."""
    names, counts = np.unique(collections, return_counts=True)
    rows = [
        {"method": one.method, "bytes": format_bytes(one.stored_bytes) if one.stored_bytes else "0"}
        | {name: f"{value:.1f}" for name, value in one.figures(collections).items()}
        for one in found
    ]
    headings = {"method": "method", "bytes": "bytes per image", "all": f"all ({counts.sum()})", "mean": "mean"}
    return markdown(rows, headings | {str(name): f"{name} ({count})" for name, count in zip(names, counts)})


def collection_rows(found: Sequence[HeldOut], collections: np.ndarray) -> list[dict[str, Any]]:
    """`collections_table` as plain values, with the settings and the average precision of every query."""
    return [
        {"method": one.method, "bytes": one.stored_bytes, "map": one.figures(collections)}
        | {"settings": {name: vars(setting) for name, setting in one.settings.items()}}
        | {"average_precision": one.precisions.round(4).tolist()}
        for one in found
    ]
