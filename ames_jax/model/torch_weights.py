"""Weights of the release's PyTorch checkpoints ↔ AMES: a table from their names to ours, exact in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import model_of, weights_of
from ames_jax.runtime.errors import UserError

HEAD_WIDTH = 64  # the release's 2 heads of 64; the number of heads cannot be read off the weights


def release_names(config: AMESConfig) -> dict[str, str]:
    """Our name of every parameter of a model of this shape → its name in the release's `{desc}_ames*.pt`, in their order.

    PyTorch keeps the transpose of what is a kernel here.
    """
    names = {"matching_token": "mtc_token"}

    def linear(ours: str, theirs: str) -> None:
        names.update({f"{ours}/kernel": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"})

    def norm(ours: str, theirs: str) -> None:
        names.update({f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"})

    if config.bits is not None:
        names["tokenizer/hyperplanes"] = "remap_local.0.W"
    first = 0 if config.bits is None else 1
    linear("tokenizer/remap", f"remap_local.{first}")
    norm("tokenizer/norm", f"remap_local.{first + 1}")
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


def infer_config(weights: Mapping[str, np.ndarray], heads: int | None = None, activation: str = "relu") -> AMESConfig:
    """The configuration that the shapes of a checkpoint imply.

    The heads (default: of width 64, the release's) and the activation leave no trace in the weights.

    Raises:
      UserError: not an AMES checkpoint, or a width that is no multiple of 64 where `heads` is not given.
    """
    binary = "remap_local.0.W" in weights
    needed = ["remap_local.0.W" if binary else "remap_local.0.weight", "decoder.layers.0.linear1.weight", "mtc_token"]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise UserError(f"not an AMES checkpoint: expected {', '.join(missing)} among its {len(weights)} names")
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


def from_torch(weights: Mapping[str, np.ndarray], config: AMESConfig | None = None) -> AMES:
    """Builds the model of a release checkpoint.

    Args:
      weights: name → array, as under the checkpoint's key `state`.
      config: the model's shape; inferred from the arrays where None.

    Raises:
      UserError: one error that lists every missing, left-over and mis-shaped name.
    """
    config = config or infer_config(weights)
    return model_of(config, weights, release_names(config))


def to_torch(model: AMES) -> dict[str, np.ndarray]:
    """The model's parameters under the release's names and in its layout, float32; `from_torch` gives back the same model.

    Raises UserError for a model that adds matching bits to its logit, which the release's code would leave out.
    """
    if model.config.match_weight:
        raise UserError(f"match_weight is {model.config.match_weight:g}: the release's code cannot score such a model")
    weights = weights_of(model)
    return {
        theirs: np.ascontiguousarray(weights[ours].T if ours.endswith("/kernel") else weights[ours])
        for ours, theirs in release_names(model.config).items()
    }
