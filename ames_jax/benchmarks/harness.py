"""The harness of `python -m ames_jax.benchmark`: a case is work that we do and, on the same inputs, PyTorch beside us.

Nothing is reported where the results of the two do not agree.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.benchmarks.flags import Flags
from ames_jax.benchmarks.measuring import peak_bytes, reset_peak
from ames_jax.model.ames import AMESConfig
from ames_jax.model.kinds import Config, Model, new_model
from ames_jax.model.torch_weights import from_torch, to_torch
from ames_jax.report.tables import markdown
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_json
from ames_jax.runtime.progress import Progress

MATMUL = 2048
# Weights are drawn this much wider than the release starts with, so that the logits of random pairs differ visibly.
SPREAD = 4.0


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


@dataclasses.dataclass(frozen=True)
class Case:
    """Work that we do, and PyTorch beside us: one row of a table.

    Attributes:
      row: the first columns, which say what is measured.
      ours: does the work once. Of the values that it returns by name, numbers are columns, and those that PyTorch gives too
        are compared: arrays by the largest difference, numbers by the relative one.
      units: how many things that is.
      job: name, settings (plain JSON) and arrays for `torch_jobs`; None where PyTorch has no part.
      tolerance: by compute type.
      work: FLOPs that it needs, None where they are not counted.
      warm: runs before the timed ones.
    """

    row: Mapping[str, Any]
    ours: Callable[[], Mapping[str, Any]]
    units: int
    job: tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]] | None = None
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    work: int | None = None
    warm: int = 1


class Harness:
    """Measures cases on this machine and prints their table.

    Args:
      unit: what is counted, in the plural: rates are the columns UNIT_per_second and torch_UNIT_per_second.
      needs: modules that the PyTorch side imports.
    """

    def __init__(self, flags: Flags, unit: str, dtype: str = "float32", repeats: int = 1, needs: str = "torch") -> None:
        use_devices(getattr(flags, "devices", None))
        self.torch = TorchProcess(flags.torch_python, needs)
        self.flags, self.unit, self.dtype, self.repeats = flags, unit, dtype, repeats

    @functools.cached_property
    def peak(self) -> float:
        """FLOP/s of large matrix products on one device."""
        return matmul_peak(self.dtype)

    def row(self, case: Case) -> dict[str, Any]:
        """Measures one case: PyTorch first, then a comparison of the results, then ours."""
        row, seconds, theirs = dict(case.row), [], None
        with Progress(", ".join(f"{name} {value}" for name, value in row.items())):
            if case.job and self.torch.there:
                job, settings, arrays = case.job
                theirs = self.torch.run(job, {"dtype": self.dtype, "repeats": self.repeats, **settings}, arrays)
            for run in range(case.warm + self.repeats):
                if run == case.warm:
                    reset_peak()
                start = time.perf_counter()
                answer = jax.block_until_ready(case.ours())
                seconds.append(time.perf_counter() - start)
                if run == 0:
                    row |= {name: value for name, value in answer.items() if np.ndim(value) == 0}
                    row |= _differences(answer, theirs or {}, case.tolerance.get(self.dtype, 0.0))
        row |= self._rates(case, statistics.median(seconds[case.warm :]))
        return row if theirs is None else row | self._torch_rates(case, row["seconds"], theirs)

    def _rates(self, case: Case, seconds: float) -> dict[str, Any]:
        row = {"seconds": seconds, f"{self.unit}_per_second": case.units / seconds, "peak_mb": peak_memory() / 1e6}
        if case.work is not None:
            rate = case.work / seconds
            row |= {"gflops": rate / 1e9, "share": rate / (self.peak * jax.local_device_count())}
            row[f"gflop_per_{self.unit.removesuffix('s')}"] = case.work / case.units / 1e9
        return row

    def _torch_rates(self, case: Case, seconds: float, theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        row, scale = {"torch_peak_mb": float(theirs["peak_bytes"]) / 1e6}, case.units / float(theirs["units"])
        for name, best in (("seconds", ""), ("best_seconds", "best_")):
            if name in theirs:
                taken = float(theirs[name]) * scale  # for as much as ours did
                row |= {f"torch_{name}": taken, f"{best}ratio": taken / seconds}
                row[f"torch_{best}{self.unit}_per_second"] = case.units / taken
        return row

    def report(self, columns: Mapping[str, str], rows: Sequence[dict], *notes: str, **facts: Any) -> dict[str, Any]:
        """Prints the table of `columns` (key → heading) and the rates; writes JSON; the results as plain values.

        notes: sentences above the table; facts: further values of the JSON file.
        """
        device = jax.local_devices()[0]
        facts |= {"device": device.device_kind, "platform": device.platform, "devices": jax.local_device_count()}
        facts |= {"dtype": self.dtype, "torch": self.torch.why}
        title = f"{facts['devices']} × {device.device_kind}, {self.dtype}"
        title += f", medians of {self.repeats}" if self.repeats > 1 else ""
        if "peak" in self.__dict__:
            facts["matmul_gflops"] = self.peak / 1e9
            title += f"; {MATMUL}³ matrix product: {self.peak / 1e9:,.0f} GFLOP/s per device"
        rates = {
            f"{self.unit}_per_second": f"{self.unit}/s",
            f"torch_{self.unit}_per_second": f"PyTorch {self.unit}/s",
            "ratio": "ratio",
            f"torch_best_{self.unit}_per_second": "PyTorch at its best",
            "best_ratio": "ratio to it",
            "gflops": "GFLOP/s",
            "share": "of matmul peak",
            "peak_mb": "peak MB",
            "torch_peak_mb": "PyTorch peak MB",
            "difference": "largest difference",
        }
        print("\n".join([f"{title}.", *notes, f"PyTorch: {self.torch.why}."]))
        print(f"\n{markdown(rows, columns | {key: heading for key, heading in rates.items() if key not in columns})}")
        results = {**facts, "rows": list(rows)}
        if self.flags.json is not None:
            write_json(self.flags.json, results)
        return results


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, np.ndarray], tolerance: float) -> dict[str, float]:
    """The largest difference of what both give; raises UserError above `tolerance`: what is timed is not the same work."""
    found = {}
    for name in ours.keys() & theirs.keys():
        a, b = np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64)
        difference = float(np.max(np.abs(a - b))) if b.ndim else float(abs(a / b - 1))
        if not difference <= tolerance:
            raise UserError(
                f"{name}: ours and PyTorch's differ by {difference:.1e}, more than {tolerance:.0e}: no comparison"
            )
        found["difference"] = max(difference, found.get("difference", 0.0))
    return found


def matmul_peak(dtype: str, size: int = MATMUL, repeats: int = 20) -> float:
    """FLOP/s of the fastest of some size³ products of `dtype` on one device (all cores on CPU), as the model does them."""
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    a = jnp.full((size, size), 0.5, jnp.dtype(dtype))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    product(a, a).block_until_ready()
    queued = 1 if jax.default_backend() == "cpu" else 20  # enough to hide the time of a launch
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(queued):
            out = product(a, a)
        out.block_until_ready()
        best = min(best, (time.perf_counter() - start) / queued)
    return 2 * size**3 / best


def peak_memory() -> int:
    """Peak bytes: of the first accelerator since the start, or of this process since `reset_peak` on CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use") or peak_bytes())


def use_devices(count: int | None) -> None:
    """Limits this process to `count` devices (virtual ones on CPU); must come before JAX is used."""
    if count is None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, range(count))))
    except RuntimeError as error:
        raise UserError(f"--devices={count}: JAX is already in use with {jax.local_device_count()} devices") from error
    if jax.local_device_count() != count:
        raise UserError(f"--devices={count}: this machine has {jax.local_device_count()}")


def comparable(config: Config, dtype: str) -> Config:
    """The configuration in which both sides compute in `dtype`, and no rounding stands between their logits.

    Full precision stores database tokens in float16. A token that falls on the border between two float16 values goes to
    either by the last bit of float32, which two programs never share, and the step is a thousand times that bit. So both
    sides leave this rounding out (it is no work worth counting); the golden files of the release check it.
    """
    if isinstance(config, AMESConfig):
        return dataclasses.replace(config, dtype=dtype, round_stored=False)
    if dtype != "float32":
        raise UserError(f"--dtype={dtype}: ELViS computes in float32 alone")
    return dataclasses.replace(config, round_stored=False)


def random_model(config: Config, seed: int = 0) -> tuple[Model, dict[str, np.ndarray]]:
    """A model with random weights, and the same weights under the release's names."""
    weights = to_torch(new_model(config, nnx.Rngs(seed)))
    wide = {
        name for name, array in weights.items() if array.ndim == 2 and "in_proj" not in name and not name.endswith("W")
    }
    weights = {name: array * np.float32(SPREAD) if name in wide else array for name, array in weights.items()}
    return from_torch(weights, config), weights
