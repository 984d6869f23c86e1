"""Search in collections of pictures: index a folder, query it, serve it, see why an image was found, keep it up to date."""

from __future__ import annotations

from collections.abc import Sequence

from ames_jax.runtime import cache
from ames_jax.runtime.command_line import application, call
from ames_jax.runtime.errors import run_main

COMMANDS = {
    "search": ("index", "query", "explain"),
    "serve": ("serve",),
    "search_changes": ("sync", "remove", "compact", "verify", "duplicates"),
    "search_measures": ("speed", "plan"),
    "calibrate": ("calibrate",),
}
PLACES = {name: f"ames_jax.commands.{module}:{name}" for module, names in COMMANDS.items() for name in names}
app = application("search", __doc__, PLACES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code; raises UserError."""
    cache.start()
    return call(app, argv)


if __name__ == "__main__":
    run_main(main)
