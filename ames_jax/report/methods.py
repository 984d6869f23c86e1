"""Methods beside each other: their names on the command line, and one row of figures, bytes and speed for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ames_jax.model.packing import BitPacker
from ames_jax.model.released import load_model
from ames_jax.report.tables import markdown
from ames_jax.retrieval import refinement
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.hand_made import MaxSimMatcher, RansacMatcher
from ames_jax.retrieval.matchers import Matcher, ModelMatcher
from ames_jax.retrieval.score_keeper import ScoreKeeper, pairs_per_second
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import tune
from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.imports import named_class

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
    return {"whitening": MaxSimMatcher.on_floats("floats", data.training or data.database).whitening}


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
