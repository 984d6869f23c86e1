"""Prepares data sets: checks downloads, imports pickles, searches neighbours, writes shards and stores, renders scenes."""

from __future__ import annotations

from collections.abc import Sequence

from ames_jax.runtime import cache
from ames_jax.runtime.command_line import application, call
from ames_jax.runtime.errors import run_main

FUNCTIONS = {
    "validate": "validate",
    "import": "import_pickles",
    "neighbours": "neighbours",
    "shards": "shards",
    "store": "store",
    "scenes": "render_scenes",
}
app = application("prepare", __doc__, {name: f"ames_jax.commands.prepare:{to}" for name, to in FUNCTIONS.items()})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand: 0 done, 2 problems found (validate); raises UserError."""
    cache.start()
    return call(app, argv)


if __name__ == "__main__":
    run_main(main)
