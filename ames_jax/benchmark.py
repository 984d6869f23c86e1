"""Speed, measured here beside a plain PyTorch implementation that works as the release does, and quality on photographs.

PyTorch is left out where no Python with torch is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from ames_jax.runtime import cache
from ames_jax.runtime.command_line import application, call
from ames_jax.runtime.errors import run_main

NAMES = ("data", "score", "train", "extract", "evaluate", "serve", "collections")
PLACES = {name: f"ames_jax.commands.benchmark:{name}" for name in NAMES}
app = application("benchmark", __doc__, PLACES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one benchmark and returns its exit code; raises UserError."""
    cache.start()
    return call(app, argv)


if __name__ == "__main__":
    run_main(main)
