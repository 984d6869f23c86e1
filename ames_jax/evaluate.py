"""Evaluates a model on a retrieval benchmark: every pair is scored once, then λ, γ and k are swept from the scores.

Writes into the workdir: results.json, results.md, logits.npz, scores/ (what a killed run resumes from), lists/ (neighbour
pickles as safe files) and, with sweep_memory, tradeoff-*.png and memory.md.

Finished training runs: `python -m ames_jax.evaluate seeds RUN RUN --out=DIR` joins those that differ in their seed,
`python -m ames_jax.evaluate curves NAME=DIR NAME=DIR --out=FILE.png` draws their training; --help after each says more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.runtime import cache, processes
from ames_jax.runtime.command_line import application, call, parse
from ames_jax.runtime.errors import run_main

REPORTS = {name: f"ames_jax.commands.evaluate:{name}" for name in ("seeds", "curves")}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the command line says, or runs a subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in REPORTS:
        return call(application("evaluate", __doc__, REPORTS), arguments)
    command = parse(__doc__, "evaluate", arguments)
    cache.start()
    processes.start(command.config)
    with processes.alone(command.workdir):
        evaluate(command.config, command.workdir)
    processes.wait_for_all("end")
    return 0


if __name__ == "__main__":
    run_main(main)
