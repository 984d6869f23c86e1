"""Training: python -m ames_jax.train --config=configs/student_bin.py

Data, teacher, student, table and pictures, in this order; what is there already is not done again. A killed run goes on
where it was when the same command is given again. `--config=configs/detector.py` trains the detector of an extractor.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ml_collections import ConfigDict

from ames_jax.model.ames import AMES
from ames_jax.model.released import load_model
from ames_jax.report.run_report import draw_curves, write_report
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime import cache, processes
from ames_jax.runtime.command_line import parse
from ames_jax.runtime.errors import UserError, run_main
from ames_jax.runtime.files import is_remote, path_of
from ames_jax.runtime.preemption import STOPPED_EARLY, StoppedEarly
from ames_jax.scenes import landmarks, transfer
from ames_jax.training.run import keep_config, keep_statistics, train_role


def main() -> int:
    """Reads the command line and does what the configuration asks for; returns the exit code."""
    command = parse(__doc__, "student_bin")
    config, workdir = command.config, command.workdir
    cache.start()
    if "backbone" in config:
        from ames_jax.training.detector import train_detector

        keep_config(config, workdir)
        print(train_detector(config, workdir))
        return 0
    processes.start(config)
    if is_remote(workdir) and config.get("report", {}).get("enabled"):
        raise UserError(
            "--config.report.enabled draws pictures, which needs a --workdir on disk; switch it off for gs://"
        )
    with processes.lead_first():
        keep_config(config, workdir)
    with processes.lead_first():
        root = data_root(config)
    if processes.is_lead():
        keep_statistics(root, workdir)
    try:
        if "train_teacher" not in config:
            train_role(config, root, workdir / "teacher", "teacher", None)
            if processes.is_lead() and not is_remote(workdir):
                draw_teacher_curves(config, root, workdir)
            processes.wait_for_all("end")
            return 0
        teacher = get_teacher(config, root, workdir)
        student = train_role(config, root, workdir / "student", "student", teacher)
    except StoppedEarly as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED_EARLY
    # The lead process alone: a report scores few queries, and draws.
    if config.report.enabled and processes.is_lead():
        write_report(config.report, root, workdir, teacher, student)
    processes.wait_for_all("end")
    return 0


def data_root(config: ConfigDict) -> Path:
    """The folder of the data set: built on first use where it is rendered, else `data_dir`."""
    if config.data_dir:
        return path_of(config.data_dir)
    rendered = {"landmarks": landmarks.build, "transfer": transfer.build}
    if config.dataset in rendered:
        return rendered[config.dataset](rebuild=config.data.rebuild)
    raise UserError(
        f"dataset {config.dataset!r} needs --config.data_dir=DIR, a folder prepared from its descriptors: "
        "python -m ames_jax.prepare shards (README, section GLDv2, says where to get them)"
    )


def draw_teacher_curves(config: ConfigDict, root: Path, workdir: Path) -> None:
    """training.png of a run that trains a teacher alone."""
    shortlist = config.validation.shortlist
    validation = RetrievalSet.load(root, "validation", queries=config.validation.queries)
    draw_curves(workdir, validation, shortlist, ["teacher"])
    print(workdir / "training.png")


def get_teacher(config: ConfigDict, root: Path, workdir: Path) -> AMES:
    """The given teacher, or one trained first in the workdir with the student's data, seed and size."""
    if config.teacher:
        return load_model(config.teacher)
    settings = config.train_teacher
    for key in ("dataset", "data_dir", "seed", "size", "profile"):
        settings[key] = config[key]
    processes.say(f"no teacher given (--config.teacher): training or reusing one in {workdir / 'teacher'}")
    return train_role(settings, root, workdir / "teacher", "teacher", None)


if __name__ == "__main__":
    run_main(main)
