"""Speed, measured here: `python -m ames_jax.benchmark data|score|train|extract|evaluate`; `--help` after each says more.

Each stands beside a plain PyTorch implementation that works as the release does, where a Python with torch is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from ames_jax.benchmarks import data, extract, score, train, whole_job
from ames_jax.report.plain_tables import write_json
from ames_jax.runtime import cache
from ames_jax.runtime.command_line import Parser
from ames_jax.runtime.errors import run_main

COMMANDS = {
    "data": (data, "Images a second from disk to the training step, from each storage."),
    "score": (score, "Pairs a second of queries against their shortlists."),
    "train": (train, "Triplets a second of training steps, with and without a teacher."),
    "extract": (extract, "Images a second of SIFT and of DINOv2's ViT."),
    "evaluate": (whole_job, "A whole evaluation of an ROxford-sized random set, from HDF5 files to mAP."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand: measures, prints a table, writes JSON."""
    parser = Parser(prog="python -m ames_jax.benchmark", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    cache.start()
    results, table = arguments.run(arguments)
    print(table)
    write_json(arguments.json, results)
    return 0


if __name__ == "__main__":
    run_main(main)
