"""Converts models: python -m ames_jax.convert --from=dinov2_ames.pt --to=DIR

Every way and back gives the same weights, bit for bit (from .stablehlo there is no way back).
"""

from __future__ import annotations

from collections.abc import Sequence

from ames_jax.runtime.command_line import application, call
from ames_jax.runtime.errors import run_main

app = application("convert", __doc__, "ames_jax.commands.convert:convert")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts one model and returns the exit code; raises UserError."""
    return call(app, argv)


if __name__ == "__main__":
    run_main(main)
