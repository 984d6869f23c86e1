"""Descriptors of any images: `python -m ames_jax.extract --images=DIR|LIST --backbone=sift|dinov2|cvnet --out=DIR`.

Writes a data set like any other: shards of local descriptors, global descriptors, ids, and labels from the names of
sub-folders. A killed run goes on where it was when the same command is given again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ames_jax.runtime import cache
from ames_jax.runtime.command_line import application, call
from ames_jax.runtime.errors import run_main

app = application("extract", __doc__, "ames_jax.commands.extract:extract")


def main(argv: Sequence[str] | None = None) -> int:
    """Extracts, and returns the exit code; raises UserError."""
    cache.start()
    return call(app, argv)


if __name__ == "__main__":
    run_main(main)
