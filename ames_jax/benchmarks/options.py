"""Options that the subcommands of `python -m ames_jax.benchmark` share, and how their values are read."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from ames_jax.runtime.errors import UserError

Shape = tuple[int, int]


def add_common(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--torch-python`, which every subcommand has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PYTHON",
        help="a Python with torch, for the PyTorch columns; by default this one; none: leave them out",
    )  # fmt: skip


def add_compute(parser: argparse.ArgumentParser, shapes: str) -> None:
    """What `score`, `train` and `evaluate` have beside: shapes, precision, devices, repeats."""
    add = parser.add_argument
    add(
        "--shapes", type=shapes_of, default=shapes_of(shapes), metavar="QxT,…",
        help=f"descriptors of query and database, e.g. 600x50,100x100 (default: {shapes})",
    )  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type of both (default: float32)")
    add("--devices", type=int, help="devices to use; by default all (on CPU: 1)")
    add("--repeats", type=int, default=3, help="timings of which the median is taken (default: 3)")
    add_common(parser)


def shapes_of(text: str) -> list[Shape]:
    """ "600x50,100x100" as (query, database) descriptors."""
    try:
        shapes = [tuple(int(part) for part in shape.split("x")) for shape in text.split(",")]
    except ValueError:
        shapes = []
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise argparse.ArgumentTypeError(f"expected QxT with commas between, e.g. 600x50,100x100, found {text!r}")
    return shapes


def whole_numbers(text: str) -> list[int]:
    """ "100,400" as numbers."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, found {text!r}")
    return numbers


def existing_python(name: str) -> str | None:
    """The interpreter `--torch-python` names, None for "none"; raises UserError where there is no such program."""
    if name == "none":
        return None
    path = shutil.which(name)
    if path is None:
        raise UserError(f"--torch-python={name}: no such program; give a Python that has torch, or none")
    return path


def use_devices(count: int | None) -> None:
    """Limits this process to `count` devices (virtual ones on CPU); must come before JAX is used."""
    if count is None:
        return
    if count < 1:
        raise UserError(f"--devices={count}: use at least 1")
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, range(count))))
    except RuntimeError as error:
        raise UserError(f"--devices={count}: JAX is already in use with {jax.local_device_count()} devices") from error
    if jax.local_device_count() != count:
        raise UserError(f"--devices={count}: this machine has {jax.local_device_count()}")


def check_positive(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Raises UserError, naming the flag, for a value below 1."""
    for name in names:
        value = getattr(arguments, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, found {value}")
