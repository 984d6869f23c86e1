"""Runs a job of the PyTorch side in its own process, with another Python where this one has no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ames_jax.runtime.errors import UserError

SCRIPTS = {
    "score": "torch_jobs.py",
    "train": "torch_jobs.py",
    "evaluate": "torch_evaluation.py",
    "extract": "torch_vit.py",
}


class Opponent:
    """The PyTorch side; `there` is False when it is left out, and `why` says so in one line."""

    def __init__(self, python: str | None) -> None:
        self.python, self.why = python, "left out (--torch-python=none)"
        if python is not None:
            done = subprocess.run(
                [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
            )
            lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
            self.why = lines[-1] if lines else f"{python} ended with {done.returncode}"
            if done.returncode:
                self.python = None

    @property
    def there(self) -> bool:
        """True when there is a Python with torch."""
        return self.python is not None

    def run(self, job: str, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Does `job` with settings (plain JSON) and arrays; returns the arrays that it gives back.

        Raises UserError with the last line of what PyTorch said where it fails, e.g. for want of memory.
        """
        full = {"job": job, "gpu": jax.default_backend() == "gpu", **settings}
        with tempfile.TemporaryDirectory(prefix="ames_jax_torch_") as folder:
            asked, answer = Path(folder) / "job.npz", Path(folder) / "result.npz"
            np.savez(asked, settings=json.dumps(full), **arrays)
            command = [self.python, str(Path(__file__).with_name(SCRIPTS[job])), str(asked), str(answer)]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=_environment())
            if done.returncode:
                said = done.stderr.strip().splitlines()
                raise UserError(
                    f"the PyTorch side ended with {done.returncode}: {said[-1] if said else 'it was killed'}"
                )
            with np.load(answer) as file:
                return dict(file)


def _environment() -> dict[str, str]:
    """This process's, without what would point another Python at this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def compare(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """The largest difference; raises UserError above `tolerance`: then nothing that is timed is the same work."""
    difference = float(np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))))
    if not difference <= tolerance:
        raise UserError(
            f"{name}: ours and PyTorch's differ by {difference:.1e}, more than {tolerance:.0e}: no comparison"
        )
    return difference


def progress(text: str) -> None:
    """What is being measured, on stderr."""
    print(text, file=sys.stderr, flush=True)
