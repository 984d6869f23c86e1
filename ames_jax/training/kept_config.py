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


# Least and largest of the numbers of a configuration, also of the teacher's inside of a student's.
MOST = 2**53
LIMITS = {
    **dict.fromkeys(("batch", "side", "log_every", "validate_every", "checkpoint.every", "checkpoint.keep"), (1, MOST)),
    **dict.fromkeys(
        (f"data.{key}" for key in ("batch", "accumulate", "buckets", "descriptors", "lengths", "top")), (1, MOST)
    ),
    **dict.fromkeys((f"model.{key}" for key in ("bits", "heads", "model_width")), (1, MOST)),
    **dict.fromkeys((f"validation.{key}" for key in ("every", "queries", "shortlist", "query_descriptors")), (1, MOST)),
    **dict.fromkeys(("validation.database_descriptors", "optimizer.steps", "data.minimum"), (1, MOST)),
    **dict.fromkeys(("seed", "workers", "data.workers", "data.noise", "data.power", "distillation"), (0, MOST)),
    **dict.fromkeys(
        (f"optimizer.{key}" for key in ("learning_rate", "weight_decay", "warmup", "clip", "epochs")), (0, MOST)
    ),
    **dict.fromkeys(("data.drop", "optimizer.beta2"), (0, 1)),
}


class _FreeKeys:
    """Keys and whole groups that may change between a run and its resumption: they do not touch the parameters."""

    NAMES = (
        *("checkpoint", "report", "train_teacher"),
        *("data.rebuild", "data.workers", "data.accumulate", "data_dir", "log_every", "profile", "teacher"),
        *("distributed", "process", "processes", "start_timeout"),
    )

    def __contains__(self, key: str) -> bool:
        return key in self.NAMES or key.partition(".")[0] in self.NAMES


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError, naming the key, for a number that is not finite or outside of its limits: before anything is made."""
    for key, value in flatten(config).items():
        low, high = LIMITS.get(key.removeprefix("train_teacher."), (-MOST, MOST))
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool) and not low <= number <= high:
                expected = f"{low:g} to {high:g}" if high < MOST else f"{low:g} or more" if low >= 0 else "a number"
                raise UserError(f"--config.{key}={value}: expected {expected}")
        if key.endswith("data.lengths") and not (len(value) == 2 and value[0] < value[1]):
            raise UserError(f"--config.{key}={value}: expected two numbers, the second larger, such as 10,49")


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
