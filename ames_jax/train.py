"""Training: python -m ames_jax.train --config=student_bin

Data, teacher, student, table and pictures, in this order; what is there is not done again, and the same command goes on with
a killed run where it was. `--config=detector` trains the detector of an extractor."""

from __future__ import annotations

import sys

from etils import epy

from ames_jax.runtime import cache
from ames_jax.runtime.command_line import parse, refuse_missing
from ames_jax.runtime.errors import run_main
from ames_jax.runtime.paths import is_remote

with epy.lazy_imports():  # help, and a mistake on the command line, need none of them
    from ames_jax.report import run_report
    from ames_jax.runtime import preemption, processes
    from ames_jax.training import detector, kept_config, run


def main(argv: list[str] | None = None) -> int:
    """Does what the configuration asks for; returns the exit code."""
    cache.start()
    command = parse(__doc__, "student_bin", argv)
    config, workdir = command.config, command.workdir
    refuse_missing(config, ("data_dir", "images", "photos", "teacher", "start"))
    try:
        if "images" in config:
            print(detector.train_detector(config, workdir))
            return 0
        kept_config.count_given_steps(config, command.given)
        # 1. The data: given, or rendered on first use.
        root = run.open_run(config, workdir)
        # 2. The teacher: given, trained before, or trained now.
        teacher = run.train_teacher(config, root, workdir)
        # 3. The student, where the configuration is of one.
        student = run.train_role(config, root, workdir, "student", teacher) if "train_teacher" in config else None
    except preemption.StoppedEarly as stopped:
        print(stopped, file=sys.stderr)
        return preemption.STOPPED_EARLY
    # 4. The report, by the lead process alone: it scores few queries, and draws.
    if processes.is_lead():
        if student is not None and config.report.enabled:
            run_report.write_report(config.report, root, workdir, teacher, student)
        elif student is None and not is_remote(workdir):
            run_report.draw_teacher_curves(config, root, workdir)
    processes.wait_for_all("end")
    return 0


if __name__ == "__main__":
    run_main(main)
