"""Weights of the authors' PyTorch checkpoints ↔ AMES and ELViS: a table from their names to ours, exact in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ames_jax.model.ames import AMESConfig
from ames_jax.model.elvis import ELViSConfig
from ames_jax.model.kinds import Config, Model, title_of
from ames_jax.model.matches import MatchingConfig
from ames_jax.model.weights import model_of, weights_of
from ames_jax.runtime.errors import UserError

HEAD_WIDTH = 64  # the release's 2 heads of 64; the number of heads cannot be read off the weights
ELVIS_LINEARS = {
    "dust_hidden": "dust_bin_mlp.0", "dust_out": "dust_bin_mlp.2", "vote_hidden": "f.0", "vote_out": "f.3",
    "head_hidden": "g.0", "head_out": "g.2",
}  # fmt: skip


def release_names(config: Config) -> dict[str, str]:
    """Our name of every parameter of a model of this shape → its name in the authors' `{desc}_ames*.pt` (in their order) or
    `{desc}_elvis_*.pt`.

    PyTorch keeps the transpose of what is a kernel here.
    """
    elvis = isinstance(config, ELViSConfig)
    names = {"corner": "dust_bin"} if elvis else {"matching_token": "mtc_token"}

    def linear(ours: str, theirs: str) -> None:
        names.update({f"{ours}/kernel": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"})

    def norm(ours: str, theirs: str) -> None:
        names.update({f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"})

    if config.bits is not None:
        names["tokenizer/hyperplanes"] = "remap_local.0.W"
    first = 0 if config.bits is None else 1
    linear("tokenizer/remap", f"remap_local.{first}")
    norm("tokenizer/norm", f"remap_local.{first + 1}")
    if elvis:
        norm("vote_norm", "f.1")
        for ours, theirs in ELVIS_LINEARS.items():
            linear(ours, theirs)
        return names
    for i in range(config.layers):
        ours, theirs = f"layers/{i}", f"decoder.layers.{i}"
        for attention, attn in (("self_attention", "self_attn"), ("cross_attention", "cross_attn")):
            names[f"{ours}/{attention}/qkv/kernel"] = f"{theirs}.{attn}.in_proj_weight"
            names[f"{ours}/{attention}/qkv/bias"] = f"{theirs}.{attn}.in_proj_bias"
            linear(f"{ours}/{attention}/out", f"{theirs}.{attn}.out_proj")
        linear(f"{ours}/expand", f"{theirs}.linear1")
        linear(f"{ours}/contract", f"{theirs}.linear2")
        for number, name in enumerate(("norm_self", "norm_cross", "norm_feed_forward"), 1):
            norm(f"{ours}/{name}", f"{theirs}.norm{number}")
    if config.pre_norm:
        norm("final_norm", "decoder.norm")
    linear("classifier", "classifier")
    return names


def infer_config(weights: Mapping[str, np.ndarray], heads: int | None = None, activation: str = "relu") -> Config:
    """The configuration that the shapes of a checkpoint imply.

    The heads of AMES (default: of width 64, the release's) and the activation leave no trace in the weights.

    Raises:
      UserError: a checkpoint of neither AMES nor ELViS, or a width that is no multiple of 64 where `heads` is not given.
    """
    binary = "remap_local.0.W" in weights
    first = "remap_local.0.W" if binary else "remap_local.0.weight"
    if "dust_bin" in weights:
        return _elvis_config(weights, first)
    needed = [first, "decoder.layers.0.linear1.weight", "mtc_token"]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise UserError(
            f"not an AMES checkpoint, nor one of ELViS: expected {', '.join(missing)} among its {len(weights)} names"
        )
    remap = np.shape(weights[needed[0]])
    width = int(np.shape(weights["mtc_token"])[-1])
    if heads is None and width % HEAD_WIDTH:
        raise UserError(
            f"tokens of width {width} are no whole number of heads of {HEAD_WIDTH}, and the weights do not show the heads: "
            "python -m ames_jax.convert --from=FILE --to=DIR --heads=NUMBER makes a model that knows them"
        )
    prefix = "decoder.layers."
    layers = 1 + max(int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix))
    return AMESConfig(
        descriptor_width=int(remap[0] if binary else remap[1]),
        bits=int(remap[1]) if binary else None,
        model_width=width,
        heads=heads or width // HEAD_WIDTH,
        layers=layers,
        feed_forward=int(np.shape(weights["decoder.layers.0.linear1.weight"])[0]),
        activation=activation,
        pre_norm="decoder.norm.weight" in weights,
    )


def _elvis_config(weights: Mapping[str, np.ndarray], first: str) -> ELViSConfig:
    remap = "remap_local.1.weight" if first.endswith("W") else first
    widths = {"model_width": remap, "vote_width": "f.0.weight", "head_width": "g.0.weight"}
    missing = sorted({first, *widths.values()} - set(weights))
    if missing:
        raise UserError(f"not a whole ELViS checkpoint: expected {', '.join(missing)} among its {len(weights)} names")
    shape, binary = np.shape(weights[first]), first != remap
    return ELViSConfig(
        descriptor_width=int(shape[0 if binary else 1]),
        bits=int(shape[1]) if binary else None,
        **{field: int(np.shape(weights[name])[0]) for field, name in widths.items()},
    )


def from_torch(weights: Mapping[str, np.ndarray], config: Config | None = None) -> Model:
    """Builds the model of a checkpoint of the authors.

    Args:
      weights: name → array, as under the checkpoint's key `state`.
      config: the model's shape; inferred from the arrays where None.

    Raises:
      UserError: weights of the other kind of model, or one error that lists every missing, left-over and mis-shaped name.
    """
    config = config or infer_config(weights)
    found = next((kind for name, kind in (("dust_bin", "ELViS"), ("mtc_token", "AMES")) if name in weights), None)
    if found not in (None, title_of(config)):
        raise UserError(f"these are weights of {found}, expected those of {title_of(config)}: give another file")
    return model_of(config, weights, release_names(config))


def to_torch(model: Model) -> dict[str, np.ndarray]:
    """The model's parameters under the release's names and in its layout, float32; `from_torch` gives back the same model.

    Raises UserError for a model that adds matches to its logit, which the release's code would leave out, and for
    hand-made matching, which has no file of the authors.
    """
    if isinstance(model.config, MatchingConfig):
        raise UserError(f"{title_of(model.config)} is no model of the release: write it as a directory or .stablehlo")
    if getattr(model.config, "counts_matches", False):
        raise UserError(f"match_weight is {model.config.match_weight:g}: the release's code cannot score such a model")
    weights = weights_of(model)
    return {
        theirs: np.array(weights[ours].T if ours.endswith("/kernel") else weights[ours], order="C")
        for ours, theirs in release_names(model.config).items()
    }
