"""The commands of `python -m ames_jax.evaluate` beside an evaluation itself: several runs in one table or picture."""

from __future__ import annotations

from pathlib import Path

from etils import epy

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file, write_json

with epy.lazy_imports():  # help needs none of them
    from ames_jax.report import comparison as comparisons
    from ames_jax.report import curves as pictures
    from ames_jax.report import tables, tradeoff


def seeds(*runs: Path, out: Path) -> None:
    """Join training runs that differ in their seed alone: a table and a trade-off plot with spreads.

    Args:
      runs: Workdirs of finished training runs.
      out: Folder to write results.md, results.json and tradeoff.png into.
    """
    comparison = comparisons.join_seeds(runs)
    table = tables.markdown_table(comparison)
    write_file(out / "results.md", table)
    results = {"dataset": comparison.data_set, "ceiling": comparison.ceiling, "rows": tables.table_rows(comparison)}
    write_json(out / "results.json", results)
    tradeoff.draw_tradeoff(comparison, out / "tradeoff.png")
    print(table)


def curves(*runs: str, out: Path, title: str = "the same data") -> None:
    """Draw the training curves of runs in one picture.

    Args:
      runs: NAME=DIR, a run's name in the picture and its folder: RUN/teacher or RUN/student.
      out: PNG file to write.
      title: The data that they were trained on, as the picture says it.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out={out}: expected a name that ends in .png")
    drawn = []
    for text in runs:
        name, _, folder = text.partition("=")
        run = pictures.training_run(name, Path(folder))
        if not folder or run is None:
            raise UserError(f"{text}: expected NAME=DIR with the folder of a run that has logged steps (metrics.jsonl)")
        drawn.append(run)
    pictures.draw_training(title, drawn, out)
    print(out)
