"""The fields of the configuration that hold several values, read and checked before anything is scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from ames_jax.model.ames import RELEASED
from ames_jax.retrieval.sweeps import Grid
from ames_jax.runtime.errors import UserError

TUNING_LAMBDAS = tuple(step / 20 for step in range(21))
TUNING_GAMMAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)


def grid_of(config: ConfigDict) -> Grid:
    """k, λ and γ of a configuration; empty λ or γ: the released model's, or a grid when they are to be tuned."""
    grid = Grid(
        numbers(config, "rerank", int),
        numbers(config, "lam", float) or _default(config, "lam"),
        numbers(config, "gamma", float) or _default(config, "gamma"),
    )
    grid.check()
    return grid


def numbers(config: ConfigDict, key: str, kind: Callable) -> tuple:
    """The values of a comma list; raises UserError for what is not a number, and for an empty list of k."""
    text = str(config[key])
    try:
        values = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"--config.{key}={text}: expected numbers with commas between them") from error
    if not values and key == "rerank":
        raise UserError("--config.rerank is empty: say how many images to re-rank, e.g. 100,400")
    return values


def _default(config: ConfigDict, key: str) -> tuple[float, ...]:
    if config.tune_on:
        return TUNING_LAMBDAS if key == "lam" else TUNING_GAMMAS
    name = Path(config.model).stem
    if name not in RELEASED:
        raise UserError(
            f"--config.{key} is empty and {name or 'the model'} is not a released model: give a value, "
            "or a data set to choose it on (--config.tune_on)"
        )
    return (RELEASED[name][["lam", "gamma"].index(key)],)
