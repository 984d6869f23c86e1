"""Search in large collections: `python -m ames_jax.search plan --images=1e8 --budget=1KB` says what fits and what it costs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from ames_jax import runtime
from ames_jax.errors import run_main

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand."""
    arguments = _parser().parse_args(argv)
    runtime.start()
    return arguments.run(arguments)


def _plan(arguments: argparse.Namespace) -> int:
    from ames_jax.benchmarks.tables import write_json
    from ames_jax.index.plan import make_plan

    plan = make_plan(
        images=arguments.images, budget=arguments.budget, shortlist=arguments.shortlist,
        query_descriptors=arguments.query_descriptors, model=arguments.model, dtype=arguments.dtype,
    )  # fmt: skip
    print(plan.table())
    write_json(arguments.json, plan.facts())
    return 0


def size_in_bytes(text: str) -> int:
    """ "1KB" → 1024, "800" → 800, "1.5 MB" → 1572864 (1 KB = 1024 B, as in our tables)."""
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 800B, 1KB or 2MB, found {text!r}")
    return round(float(match[1]) * UNITS[match[2].upper()])


def count(text: str) -> int:
    """ "1e8" → 100000000."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 1 <= value < float("inf") or value != int(value):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, e.g. 1000000 or 1e8, found {text!r}")
    return int(value)


def _parser() -> argparse.ArgumentParser:
    from ames_jax.similarity import NAMED

    parser = argparse.ArgumentParser(prog="python -m ames_jax.search", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="plan")
    text = "How many descriptors fit a budget, and what a query then costs on this machine."
    command = commands.add_parser("plan", help=text, description=text)
    command.set_defaults(run=_plan)
    add = command.add_argument
    add("--images", type=count, required=True, help="images of the collection, e.g. 1e8")
    add("--budget", type=size_in_bytes, required=True, help="for local descriptors, bytes an image, e.g. 1KB (1024 B)")
    add("--shortlist", type=count, default=100, help="images re-ranked a query (default: 100)")
    add(
        "--query-descriptors",
        type=count,
        default=600,
        help="descriptors of a query, which is not stored (default: 600)",
    )
    add("--model", choices=sorted(NAMED), default="dinov2_ames_dist", help="shape of the model (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type (default: float32)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


if __name__ == "__main__":
    run_main(main)
