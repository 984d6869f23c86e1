"""The configuration of a run: what the command line gives counts, and it is kept in the run's folder for the next command."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ames_jax.runtime.command_line import flatten
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import same_job
from ames_jax.runtime.processes import is_lead

# Keys that runs of earlier versions go without, and the value that those had.
LATER = {"model.match_form": "query", "model.match_query": "bits", "model.match_learned": False}


class _FreeKeys:
    """Keys and whole groups that may change between a run and its resumption: they do not touch the parameters."""

    NAMES = (
        *("checkpoint", "report", "train_teacher"),
        *("data.rebuild", "data.workers", "data.accumulate", "data_dir", "log_every", "profile", "teacher"),
        *("distributed", "process", "processes", "start_timeout"),
    )

    def __contains__(self, key: str) -> bool:
        return key in self.NAMES or key.partition(".")[0] in self.NAMES


def count_given_steps(config: ConfigDict, given: Collection[str]) -> None:
    """Makes `optimizer.steps` count where the command line gives it: a configuration in epochs would win silently.

    Raises UserError where the command line gives both.
    """
    for section in ("optimizer", "train_teacher.optimizer"):
        if f"{section}.steps" not in given:
            continue
        optimizer = config.train_teacher.optimizer if section.startswith("train_teacher") else config.optimizer
        if f"{section}.epochs" in given and optimizer.epochs is not None:
            raise UserError(f"--config.{section}.steps and --config.{section}.epochs: give one of them")
        optimizer.epochs = None


def keep_config(config: ConfigDict, directory: Path) -> None:
    """Writes the configuration into a run's directory; where one is there already it must agree.

    Raises:
      UserError: the directory cannot be written, or holds a run with another configuration (all differences are listed).
    """
    path = directory / "config.json"
    if not is_lead() and not path.exists():
        raise UserError(
            f"workdir {directory}: process {jax.process_index()} does not see what process 0 has written there; all "
            "hosts need the same folder: gs://BUCKET/…, or a mount of one"
        )
    try:
        settings = flatten(config)
        same_job(
            path,
            settings,
            free=_FreeKeys(),
            later=[key for key, value in LATER.items() if settings.get(key) == value],
            advice="Use another --workdir, or delete this one",
        )
    except OSError as error:
        raise UserError(f"workdir {directory} cannot be written: {error.strerror or error}") from error
