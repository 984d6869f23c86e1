"""Evaluates a model on a retrieval benchmark: every pair is scored once, then λ, γ and k are swept from the scores.

Writes into the workdir: results.json, results.md, logits.npz, scores/ (what a killed run resumes from), lists/ (neighbour
pickles as safe files) and, with sweep_memory, tradeoff-*.png and memory.md.

Finished training runs: `python -m ames_jax.evaluate seeds RUN RUN --out=DIR` joins those that differ in their seed,
`python -m ames_jax.evaluate curves NAME=DIR NAME=DIR --out=FILE.png` draws their training; --help after each says more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from etils import epy

from ames_jax.runtime import cache
from ames_jax.runtime.command_line import application, call, parse, refuse_missing
from ames_jax.runtime.errors import run_main

with epy.lazy_imports():  # help, and a mistake on the command line, need none of them
    from ames_jax.report import retrieval_evaluation
    from ames_jax.runtime import processes

REPORTS = {name: f"ames_jax.commands.evaluate:{name}" for name in ("seeds", "curves")}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the command line says, or runs a subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in REPORTS:
        return call(application("evaluate", __doc__, REPORTS), arguments)
    command = parse(__doc__, "evaluate", arguments)
    refuse_missing(command.config, ("data_dir", "model", "store", "logits"))
    cache.start()
    processes.start(command.config)
    with processes.alone(command.workdir):
        retrieval_evaluation.evaluate(command.config, command.workdir)
    processes.wait_for_all("end")
    return 0


if __name__ == "__main__":
    run_main(main)
