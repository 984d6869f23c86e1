"""Weights of the release's PyTorch checkpoints ↔ AMES: a table from their names to ours, exact in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.runtime.errors import UserError

StatePath = tuple[str | int, ...]
HEAD_WIDTH = 64  # the release's 2 heads of 64; the number of heads cannot be read off the weights


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter: its name in the release, its path in our state, and whether the release stores its transpose."""

    name: str
    path: StatePath
    transposed: bool = False


def _linear(name: str, *path: str | int) -> list[Entry]:
    return [Entry(f"{name}.weight", (*path, "kernel"), True), Entry(f"{name}.bias", (*path, "bias"))]


def _norm(name: str, *path: str | int) -> list[Entry]:
    return [Entry(f"{name}.weight", (*path, "scale")), Entry(f"{name}.bias", (*path, "bias"))]


def table(config: AMESConfig) -> list[Entry]:
    """Every parameter of a model of this shape (checkpoint names of the release's `{desc}_ames*.pt`)."""
    entries = [Entry("mtc_token", ("matching_token",))]
    first = 0
    if config.bits is not None:
        entries.append(Entry("remap_local.0.W", ("tokenizer", "hyperplanes")))
        first = 1
    entries += _linear(f"remap_local.{first}", "tokenizer", "remap")
    entries += _norm(f"remap_local.{first + 1}", "tokenizer", "norm")
    for i in range(config.layers):
        theirs, ours = f"decoder.layers.{i}", ("layers", i)
        for attn, attention in (("self_attn", "self_attention"), ("cross_attn", "cross_attention")):
            entries.append(Entry(f"{theirs}.{attn}.in_proj_weight", (*ours, attention, "qkv", "kernel"), True))
            entries.append(Entry(f"{theirs}.{attn}.in_proj_bias", (*ours, attention, "qkv", "bias")))
            entries += _linear(f"{theirs}.{attn}.out_proj", *ours, attention, "out")
        entries += _linear(f"{theirs}.linear1", *ours, "expand")
        entries += _linear(f"{theirs}.linear2", *ours, "contract")
        for norm, name in (("norm1", "norm_self"), ("norm2", "norm_cross"), ("norm3", "norm_feed_forward")):
            entries += _norm(f"{theirs}.{norm}", *ours, name)
    if config.pre_norm:
        entries += _norm("decoder.norm", "final_norm")
    return entries + _linear("classifier", "classifier")


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
        descriptor_width=int(remap[0] if binary else remap[1]), bits=int(remap[1]) if binary else None,
        model_width=width, heads=heads or width // HEAD_WIDTH, layers=layers,
        feed_forward=int(np.shape(weights["decoder.layers.0.linear1.weight"])[0]), activation=activation,
        pre_norm="decoder.norm.weight" in weights,
    )  # fmt: skip


def from_torch(weights: Mapping[str, np.ndarray], config: AMESConfig | None = None) -> AMES:
    """Builds the model of a release checkpoint.

    Args:
      weights: name → array, as under the checkpoint's key `state`.
      config: the model's shape; inferred from the arrays where None.

    Raises:
      UserError: one error that lists every missing, left-over and mis-shaped name.
    """
    config = config or infer_config(weights)
    model = nnx.eval_shape(lambda: AMES(config, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    slots = {tuple(path): variable for path, variable in flat}
    entries = table(config)
    faults = [f"missing {e.name}" for e in entries if e.name not in weights]
    faults += [f"unknown {name}" for name in sorted(set(weights) - {e.name for e in entries})]
    filled = {}
    for entry in entries:
        if entry.name not in weights:
            continue
        array = np.asarray(weights[entry.name], np.float32)
        array = array.T if entry.transposed else array
        expected = slots[entry.path].shape
        if array.shape != expected:
            shape = np.shape(weights[entry.name])
            faults.append(
                f"{entry.name} has shape {shape}, expected {expected[::-1] if entry.transposed else expected}"
            )
        else:
            filled[entry.path] = slots[entry.path].replace(jnp.array(array))
    if faults:
        raise UserError(f"the weights do not fit the model ({len(faults)} faults): " + "; ".join(faults))
    return nnx.merge(graph, nnx.from_flat_state(filled.items()))


def to_torch(model: AMES) -> dict[str, np.ndarray]:
    """The model's parameters under the release's names and in its layout, float32; `from_torch` gives back the same model.

    Raises UserError for a model that adds matching bits to its logit, which the release's code would leave out.
    """
    if model.config.match_weight:
        raise UserError(f"match_weight is {model.config.match_weight:g}: the release's code cannot score such a model")
    arrays = {tuple(path): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    return dict(_exported(table(model.config), arrays))


def _exported(entries: list[Entry], arrays: Mapping[StatePath, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for entry in entries:
        array = arrays[entry.path]
        yield entry.name, np.ascontiguousarray(array.T if entry.transposed else array)
