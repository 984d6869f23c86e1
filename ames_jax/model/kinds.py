"""The kinds of models: how the configuration of each is kept as plain values, and what is built from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.elvis import ELViS, ELViSConfig
from ames_jax.model.matches import Matching, MatchingConfig
from ames_jax.runtime.errors import UserError, did_you_mean

Config = AMESConfig | ELViSConfig | MatchingConfig
Model = AMES | ELViS | Matching
KINDS: dict[str, tuple[type[Config], type[Model]]] = {
    "ames": (AMESConfig, AMES),
    "elvis": (ELViSConfig, ELViS),
    "matching": (MatchingConfig, Matching),
}
TITLES = {"ames": "AMES", "elvis": "ELViS", "matching": "Hand-made matching"}


def kind_of(config: Config) -> str:
    """The key of KINDS."""
    return next(kind for kind, (shape, _) in KINDS.items() if isinstance(config, shape))


def title_of(config: Config) -> str:
    """The model's name, as a reader knows it."""
    return TITLES[kind_of(config)]


def new_model(config: Config, rngs: nnx.Rngs) -> Model:
    """A model with random weights."""
    return KINDS[kind_of(config)][1](config, rngs)


def fields_of(config: Config) -> dict[str, Any]:
    """Plain values for `config_of`. AMES goes without `kind`, as in files from before there were others."""
    kind = kind_of(config)
    return dataclasses.asdict(config) if kind == "ames" else {"kind": kind, **dataclasses.asdict(config)}


def config_of(fields: Mapping[str, Any]) -> Config:
    """The configuration of `fields_of`; raises UserError on a kind or a key that is not known."""
    fields = dict(fields)
    kind = fields.pop("kind", "ames")
    if kind not in KINDS:
        raise UserError(f"unknown kind of model {kind!r}: expected {' or '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    shape = KINDS[kind][0]
    known = {field.name for field in dataclasses.fields(shape)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise UserError(f"unknown model settings {', '.join(unknown)}: expected among {', '.join(sorted(known))}")
    return shape(**fields)
