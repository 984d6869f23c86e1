"""Several runs in one table or picture.

python -m ames_jax.report seeds RUN RUN RUN --out=DIR             runs of one seed each: table and trade-off with spreads
python -m ames_jax.report curves NAME=DIR NAME=DIR --out=FILE.png  training curves (DIR: RUN/teacher or RUN/student)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ames_jax.report.curves import draw_training, training_run
from ames_jax.report.seeds import join_seeds
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.report.tradeoff import draw_tradeoff
from ames_jax.runtime.errors import UserError, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand."""
    parser = argparse.ArgumentParser(
        prog="python -m ames_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="seeds | curves")
    seeds = commands.add_parser("seeds", help="joins runs that differ in their seed alone")
    seeds.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="workdir of a finished training run")
    seeds.add_argument("--out", required=True, type=Path, help="folder to write into")
    seeds.set_defaults(run=_seeds)
    curves = commands.add_parser("curves", help="draws the training curves of runs")
    curves.add_argument("runs", nargs="+", metavar="NAME=DIR", help="a run's name in the picture, and its folder")
    curves.add_argument("--title", default="the same data", help="what was trained on, as the picture says it")
    curves.add_argument("--out", required=True, type=Path, help="PNG file to write")
    curves.set_defaults(run=_curves)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


def _seeds(arguments: argparse.Namespace) -> int:
    comparison = join_seeds(arguments.runs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(comparison)
    (arguments.out / "results.md").write_text(table, encoding="utf-8")
    results = {"dataset": comparison.data_set, "ceiling": comparison.ceiling, "rows": table_rows(comparison)}
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    draw_tradeoff(comparison, arguments.out / "tradeoff.png")
    print(table)
    return 0


def _curves(arguments: argparse.Namespace) -> int:
    runs = []
    for text in arguments.runs:
        name, _, folder = text.partition("=")
        run = training_run(name, Path(folder))
        if not folder or run is None:
            raise UserError(f"{text}: expected NAME=DIR with the folder of a run that has logged steps (metrics.jsonl)")
        runs.append(run)
    draw_training(arguments.title, runs, arguments.out)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    run_main(main)
