"""The command of `python -m ames_jax.convert`: models in forms that others read."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.checksums import check, note_unchecked
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file, write_json
from ames_jax.runtime.flag_values import Count
from ames_jax.runtime.paths import path_of

with epy.lazy_imports():  # help needs none of them
    import safetensors
    import safetensors.numpy

    from ames_jax.model import ames, kinds, released, sharing, torch_files, torch_weights, weights
    from ames_jax.training import checkpoints


def convert(
    *,
    source: Annotated[str, Parameter(name="--from")],
    target: Annotated[str, Parameter(name="--to")],
    heads: Count | None = None,
    activation: Literal["relu", "gelu"] | None = None,
    terms: Annotated[str | None, Parameter(name="--license")] = None,
) -> None:
    """Reads a model in one form and writes it in another.

    Args:
      source: A release .pt file, a released name, a .safetensors file, a model or run directory, hf://OWNER/NAME, or the
        parameters of a training checkpoint: RUN/checkpoints (the newest) or RUN/checkpoints/STEP.
      target: A directory (this project's model, with a model card), hf://OWNER/NAME (the same on the Hugging Face Hub),
        FILE.pt (for the PyTorch release), FILE.safetensors (the release's names, for anything else), or FILE.stablehlo (a
        scorer with the weights inside, for CPU, GPU and TPU, which needs JAX alone).
      heads: Attention heads of a .pt or .safetensors file of others, where they are not 64 wide: the weights do not show it.
      activation: Activation of such a file, where it is not relu: the weights do not show it.
      terms: Licence of the weights, which the model card then names, as the hub spells it: apache-2.0, say.
    """
    model = read(source, heads, activation)
    write(model, target, source, terms)
    config = model.config
    stored = f"{config.bits} bits per descriptor" if config.bits else "full precision"
    shape = f"descriptors of {config.descriptor_width}"
    if kinds.kind_of(config) != "matching":
        shape += f", width {config.model_width}"
    print(f"{source} → {target}: {kinds.title_of(config)}, {stored}, {shape}")


def read(source: str, heads: int | None = None, activation: str | None = None) -> kinds.Model:
    """The model in any of the forms above; raises UserError where there is none, or its weights do not fit."""
    path = released.folder_of(source)
    if path.suffix == ".safetensors" and path.is_file():
        arrays, config = _read_safetensors(path)
    elif path.suffix == ".pt" and path.is_file():
        arrays, config = torch_files.read_checkpoint(path), released.config_beside(path)
    elif path.suffix in (".pt", ".safetensors"):
        raise UserError(f"--from={source}: no such file")
    elif heads or activation:
        raise UserError("--heads and --activation are for .pt and .safetensors files; other models know theirs")
    elif path.name == "checkpoints" or path.parent.name == "checkpoints":
        return _read_training(path)
    else:
        return released.load_model(path)
    if config is None:
        config = torch_weights.infer_config(arrays, heads, activation or "relu")
    elif heads or activation:
        config = dataclasses.replace(config, heads=heads or config.heads, activation=activation or config.activation)
    return torch_weights.from_torch(arrays, config)


def _read_training(path: Path) -> kinds.Model:
    step = None if path.name == "checkpoints" else path.name
    if step is not None and not step.isdigit():
        raise UserError(f"--from={path}: expected the step of a checkpoint, found {step!r}")
    folder = path if step is None else path.parent
    if not folder.is_dir():
        raise UserError(f"--from={path}: no such folder")
    return checkpoints.RunCheckpoints(folder, writes=False).model(None if step is None else int(step))[0]


def write(model: kinds.Model, to: str | Path, source: str, terms: str | None = None) -> None:
    """Writes the model in the form that the name `to` asks for; raises UserError where it cannot."""
    if sharing.is_on_hub(to):
        facts, run = _origin(source)
        return sharing.upload(model, str(to), facts, run, terms)
    target = path_of(to)
    if target.suffix == ".pt":
        torch_files.write_checkpoint(target, torch_weights.to_torch(model), kinds.fields_of(model.config))
    elif target.suffix == ".safetensors":
        _write_safetensors(model, target)
    elif target.suffix == ".stablehlo":
        _write_scorer(model, target)
    elif re.fullmatch(r"\.[A-Za-z]+", target.suffix) and not target.is_dir():
        raise UserError(
            f"--to={target}: expected a directory, or a name that ends in .pt, .safetensors or .stablehlo; no model is "
            f"written as {target.suffix}"
        )
    else:
        facts, run = _origin(source)
        sharing.write_folder(model, target, facts, run, terms)
    return None


def _origin(source: str) -> tuple[dict, Path | None]:
    """The facts that are known of a model, and the folder that it comes from, where it is one."""
    path, facts = released.folder_of(source), {}
    if path.stem in ames.RELEASED:
        facts = {"released": path.stem}
    folder = path if path.is_dir() and "checkpoints" not in (path.name, path.parent.name) else None
    if folder:
        facts = weights.facts_of(weights.find_model(folder))
    return {**facts, "converted_from": source}, folder


def _read_safetensors(path: Path) -> tuple[dict, kinds.Config | None]:
    check(path)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        config = json.loads(metadata["config"]) if "config" in metadata else None
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}: copy it again") from error
    note_unchecked(path)
    return arrays, None if config is None else kinds.config_of(config)


def _write_safetensors(model: kinds.Model, target: Path) -> None:
    metadata = {"config": json.dumps(kinds.fields_of(model.config))}
    try:
        write_file(target, safetensors.numpy.save(torch_weights.to_torch(model), metadata))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def _write_scorer(model: kinds.Model, path: Path) -> None:
    """Writes the exported scorer, to be read with `jax.export.deserialize`, and PATH.json, which lists its inputs.

    Raises UserError where they cannot be written.
    """
    exported = weights.export_scorer(model)
    names = ("query", "query_valid", "database", "database_valid")
    facts = {
        "inputs": {name: f"{aval.dtype} {list(map(str, aval.shape))}" for name, aval in zip(names, exported.in_avals)},
        "output": "logits float32 ['b']; the similarity is their sigmoid",
        "platforms": list(exported.platforms),
        "stablehlo": f"portable bytecode, jax.export calling convention {exported.calling_convention_version}",
    }
    try:
        write_file(path, bytes(exported.serialize()))
        write_json(path.with_name(f"{path.name}.json"), facts)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
