"""`python -m ames_jax.benchmark data`: training batches from each storage, beside a PyTorch DataLoader on the same HDF5."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from ames_jax.benchmarks.options import add_common, existing_python, whole_numbers
from ames_jax.report.plain_tables import markdown
from ames_jax.runtime.errors import UserError

HEADINGS = {
    "reader": "reader",
    "images_per_second": "images/s",
    "megabytes_per_second": "MB/s (float16)",
    "ratio": "of PyTorch",
    "waiting": "share of time waiting",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--folder", type=Path, help="where the synthetic files are kept or found; by default a temporary folder")
    add("--images", type=int, default=1200, help="images of the synthetic set (default: 1200, 2.2 GB)")
    add("--descriptors", type=int, default=400, help="descriptors an image (default: 400)")
    add("--width", type=int, default=768, help="width of a descriptor (default: 768)")
    add("--triplets", type=int, default=100, help="triplets a batch (default: 100)")
    add("--batches", type=int, default=15, help="batches timed (default: 15)")
    add("--step", type=float, default=0.5, help="seconds of the imagined training step (default: 0.5)")
    add("--workers", type=whole_numbers, default=[0], help="reading processes, comma list; 0: threads (default: 0)")
    add_common(parser)


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measures; the results as plain values, and the table."""
    from ames_jax.benchmarks.throughput import make_files, measure

    if arguments.images < 50 or min(arguments.descriptors, arguments.width, arguments.triplets, arguments.batches) < 1:
        raise UserError("--images must be at least 50; --descriptors, --width, --triplets and --batches at least 1")
    python = existing_python(arguments.torch_python)
    shape = {"images": arguments.images, "descriptors": arguments.descriptors, "width": arguments.width}
    with tempfile.TemporaryDirectory(prefix="ames_jax_benchmark_") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        written = {} if (folder / "local.hdf5").exists() else make_files(folder, **shape)
        found = measure(
            folder, **shape, batch=arguments.triplets, batches=arguments.batches, step_seconds=arguments.step,
            workers=arguments.workers, torch_python=python,
        )  # fmt: skip
    rows = [dataclasses.asdict(row) for row in found]
    torch_rate = next((r["images_per_second"] for r in rows if r["reader"].startswith("PyTorch")), None)
    for row in rows:
        row["ratio"] = None if torch_rate is None else row["images_per_second"] / torch_rate
    heading = (
        f"Batches of {arguments.triplets} triplets, {arguments.descriptors} × {arguments.width} float16 an image, all in "
        f"the page cache; waiting is beside a step of {arguments.step:g} s.\n"
    )
    if written:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in written.items())
        heading += f"Written before by one process, shards read back and compared, MB/s of float16: {rates}.\n"
    results = {"rows": rows, "step_seconds": arguments.step, "writing_megabytes_per_second": written}
    return results, f"{heading}\n{markdown(rows, HEADINGS)}"
