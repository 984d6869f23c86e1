"""AMES, re-ranking for instance-level image retrieval: `python -m ames_jax COMMAND …`, or `ames-jax COMMAND …`."""

from __future__ import annotations

import runpy
import sys

import jax

from ames_jax import __version__
from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError, did_you_mean, run_main

COMMANDS = {
    "train": "trains a teacher, a binary student, or the detector of an extractor",
    "evaluate": "measures a model on a retrieval benchmark",
    "extract": "images to local and global descriptors",
    "prepare": "imports, checks and shards descriptors; neighbours and packed stores",
    "search": "indexes images, queries the index, explains a result",
    "convert": "models to and from PyTorch, safetensors and StableHLO",
    "benchmark": "measures speed, beside a plain PyTorch implementation",
}


def main() -> int:
    """Runs the command that the first argument names as `python -m ames_jax.COMMAND` does; lists them where none is."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "--version"):
        print(__version__ if name == "--version" else overview())
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}{hint}")
    sys.argv = [f"ames_jax.{name}", *rest]
    runpy.run_module(f"ames_jax.{name}", run_name="__main__", alter_sys=True)
    return 0


def overview() -> str:
    """The commands with a line each, the version, and what this machine gives."""
    devices = jax.devices()
    lines = [(__doc__ or "").strip(), "", *(f"  {name:<10} {text}" for name, text in COMMANDS.items()), ""]
    lines += ["COMMAND --help lists its flags.", "", f"version  {__version__} (jax {jax.__version__})"]
    lines += [f"devices  {len(devices)} × {devices[0].device_kind}", f"cache    {cache.home()}"]
    return "\n".join(lines)


def console() -> None:
    """The entry point of the script `ames-jax`."""
    run_main(main)


if __name__ == "__main__":
    console()
