"""Converts models: python -m ames_jax.convert --from=dinov2_ames.pt --to=DIR

--from  a release .pt file, a released name, a .safetensors file, a model or run directory, or the parameters of a
        training checkpoint: RUN/checkpoints (the newest) or RUN/checkpoints/STEP
--to    a directory (this project's model), FILE.pt (for the PyTorch release), FILE.safetensors (the release's names, for
        anything else), or FILE.stablehlo (a scorer with the weights inside, for CPU, GPU and TPU, which needs JAX alone)
--heads, --activation  of a .pt or .safetensors file of others whose model has other than heads of 64 or relu: neither
        leaves a trace in the weights

Every way and back gives the same weights, bit for bit (from .stablehlo there is no way back).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.exporting import write_scorer
from ames_jax.model.released import config_beside, load_model
from ames_jax.model.torch_files import read_checkpoint, write_checkpoint
from ames_jax.model.torch_weights import from_torch, infer_config, to_torch
from ames_jax.model.weights import save_model
from ames_jax.runtime.command_line import Parser
from ames_jax.runtime.errors import UserError, run_main
from ames_jax.runtime.files import path_of
from ames_jax.training.checkpoints import RunCheckpoints


def main(arguments: list[str] | None = None) -> None:
    """The entry point."""
    parser = Parser(prog="python -m ames_jax.convert", description=__doc__)
    parser.add_argument("--from", dest="source", required=True)
    parser.add_argument("--to", dest="target", required=True, type=Path)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--activation", choices=("relu", "gelu"))
    options = parser.parse_args(arguments)
    model = read(options.source, options.heads, options.activation)
    write(model, options.target, options.source)
    print(f"{options.source} → {options.target}: {_described(model.config)}")


def read(source: str, heads: int | None = None, activation: str | None = None) -> AMES:
    """The model in any of the forms above; raises UserError where there is none, or its weights do not fit."""
    path = path_of(source)
    if path.suffix == ".safetensors" and path.is_file():
        weights, config = _read_safetensors(path)
    elif path.suffix == ".pt" and path.is_file():
        weights, config = read_checkpoint(path), config_beside(path)
    elif path.suffix in (".pt", ".safetensors"):
        raise UserError(f"--from={source}: no such file")
    elif heads or activation:
        raise UserError("--heads and --activation are for .pt and .safetensors files; other models know theirs")
    elif path.name == "checkpoints" or path.parent.name == "checkpoints":
        return _read_training(path)
    else:
        return load_model(source)
    if config is None:
        config = infer_config(weights, heads, activation or "relu")
    else:
        config = dataclasses.replace(config, heads=heads or config.heads, activation=activation or config.activation)
    return from_torch(weights, config)


def _read_training(path: Path) -> AMES:
    step = None if path.name == "checkpoints" else path.name
    if step is not None and not step.isdigit():
        raise UserError(f"--from={path}: expected the step of a checkpoint, found {step!r}")
    folder = path if step is None else path.parent
    if not folder.is_dir():
        raise UserError(f"--from={path}: no such folder")
    return RunCheckpoints(folder, writes=False).model(None if step is None else int(step))[0]


def write(model: AMES, target: Path, source: str) -> None:
    """Writes the model in the form that the name of `target` asks for; raises UserError where it cannot."""
    if target.suffix == ".pt":
        write_checkpoint(target, to_torch(model), dataclasses.asdict(model.config))
    elif target.suffix == ".safetensors":
        _write_safetensors(model, target)
    elif target.suffix == ".stablehlo":
        write_scorer(model, target)
    else:
        save_model(model, target, {"converted_from": source})


def _read_safetensors(path: Path) -> tuple[dict, AMESConfig | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from error
    config = AMESConfig.from_dict(json.loads(metadata["config"])) if "config" in metadata else None
    return weights, config


def _write_safetensors(model: AMES, target: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    metadata = {"config": json.dumps(dataclasses.asdict(model.config))}
    try:
        save_file(to_torch(model), target, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def _described(config: AMESConfig) -> str:
    kind = f"{config.bits} bits a descriptor" if config.bits else "full precision"
    return f"{kind}, descriptors of {config.descriptor_width}, {config.layers} layers of width {config.model_width}"


if __name__ == "__main__":
    run_main(main)
