"""Evaluates a model on a retrieval benchmark: every pair is scored once, then λ, γ and k are swept from the scores.

Writes into the workdir: results.json, results.md, logits.npz, scores/ (what a killed run resumes from), lists/ (neighbour
pickles as safe files) and, with sweep_memory, tradeoff-*.png and memory.md.
"""

from __future__ import annotations

from ames_jax.report.evaluation import evaluate
from ames_jax.runtime import cache, processes
from ames_jax.runtime.command_line import parse
from ames_jax.runtime.errors import run_main


def main() -> None:
    """The entry point: parses the command line and evaluates."""
    command = parse(__doc__, "evaluate")
    cache.start()
    processes.start(command.config)
    evaluate(command.config, command.workdir)
    processes.wait_for_all("end")


if __name__ == "__main__":
    run_main(main)
