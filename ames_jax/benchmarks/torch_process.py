"""The PyTorch side, in a process of its own, with another Python where this one has no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ames_jax.runtime.errors import UserError


class TorchProcess:
    """The PyTorch side; `there` is False when it is left out, and `why` says so in one line.

    Raises:
      UserError: there is no program `python` ("none": it is left out).
    """

    def __init__(self, python: str, needs: str = "torch") -> None:
        self.there, self.why = False, "left out (--torch-python=none)"
        if python == "none":
            return
        self._python = shutil.which(python)
        if self._python is None:
            raise UserError(f"--torch-python={python}: no such program; give a Python that has {needs}, or none")
        code = f"import {needs}; print(torch.__version__)"
        done = subprocess.run([self._python, "-c", code], capture_output=True, text=True)
        self.there = done.returncode == 0
        lines = (done.stdout if self.there else done.stderr).strip().splitlines()
        self.why = lines[-1] if lines else f"{python} ended with {done.returncode}"

    def run(self, job: str, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays that a job of `torch_jobs` gives back.

        Raises UserError with the last line of what PyTorch said where it fails, e.g. for want of memory.
        """
        full = {"job": job, "gpu": jax.default_backend() == "gpu", **settings}
        # Without what would point another Python at this one's packages.
        environment = {name: v for name, v in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        with tempfile.TemporaryDirectory(prefix="ames_jax_torch_") as folder:
            asked, answer = Path(folder) / "job.npz", Path(folder) / "result.npz"
            np.savez(asked, settings=json.dumps(full), **arrays)
            command = [self._python, str(Path(__file__).with_name("torch_jobs.py")), str(asked), str(answer)]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment)
            if done.returncode:
                said = done.stderr.strip().splitlines()
                reason = said[-1] if said else "it was killed"
                raise UserError(f"the PyTorch side ended with {done.returncode}: {reason}")
            with np.load(answer) as file:
                return dict(file)
