"""`python -m ames_jax.benchmark evaluate`: a whole evaluation from HDF5 to mAP, beside the release's way in PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.benchmarks import synthetic_retrieval
from ames_jax.benchmarks.machine import comparable, describe, random_model
from ames_jax.benchmarks.opponent import Opponent, compare, progress
from ames_jax.benchmarks.options import Shape, add_compute, check_positive, existing_python, use_devices
from ames_jax.benchmarks.score import TOLERANCE
from ames_jax.benchmarks.synthetic_retrieval import Size
from ames_jax.model.ames import AMESConfig
from ames_jax.report.plain_tables import markdown
from ames_jax.runtime.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "evaluate.py"
HEADINGS = {
    "shape": "Q×T", "queries": "queries", "rerank": "re-ranked", "seconds": "s", "pairs": "pairs scored",
    "torch_seconds": "PyTorch s", "torch_pairs": "PyTorch pairs scored", "ratio": "ratio", "difference": "logits differ by",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand; `--repeats` and `--devices` mean what they mean elsewhere."""
    size, add = Size(), parser.add_argument
    add("--folder", type=Path, help="where the synthetic set is kept or found; by default a temporary folder")
    add("--queries", type=int, default=size.queries, help=f"(default: {size.queries})")
    add("--gallery", type=int, default=size.gallery, help=f"database images (default: {size.gallery}, 5.4 GB of HDF5)")
    add("--rerank", type=int, default=size.listed, help=f"images re-ranked a query (default: {size.listed})")
    add("--stored", type=int, default=size.descriptors, help=f"descriptors in the files (default: {size.descriptors})")
    add("--torch-queries", type=int, help="PyTorch does so many queries and its time is scaled up; by default all")
    add_compute(parser, "600x50,600x600")
    parser.set_defaults(repeats=1)


def run(arguments: argparse.Namespace, config: AMESConfig | None = None) -> tuple[dict[str, Any], str]:
    """Measures every shape; `config` is the model (default: full precision of the released size)."""
    check_positive(arguments, ["queries", "gallery", "rerank", "stored", "repeats"])
    config = comparable(config or AMESConfig(), arguments.dtype)
    size = Size(arguments.queries, arguments.gallery, arguments.rerank, arguments.stored, config.descriptor_width)
    if size.gallery < size.needed:
        raise UserError(f"--gallery={size.gallery}: re-ranking {size.listed} needs at least {size.needed} images")
    if size.listed < synthetic_retrieval.JUDGED_IMAGES:
        raise UserError(f"--rerank={size.listed}: the ground truth needs at least {synthetic_retrieval.JUDGED_IMAGES}")
    if max(map(max, arguments.shapes)) > size.descriptors:
        raise UserError(f"--shapes asks for more descriptors than the --stored={size.descriptors}")
    use_devices(arguments.devices)
    opponent = Opponent(existing_python(arguments.torch_python))
    asked = min(arguments.torch_queries or size.queries, size.queries)
    rows = []
    with tempfile.TemporaryDirectory(prefix="ames_jax_benchmark_") as temporary:
        manifest = synthetic_retrieval.make(arguments.folder or Path(temporary) / "set", size)
        for shape in arguments.shapes:
            progress(f"{shape[0]} × {shape[1]}")
            rows.append(_row(config, size, manifest, Path(temporary), shape, opponent, asked, arguments.repeats))
    facts = {**describe(), "dtype": arguments.dtype, "size": dataclasses.asdict(size), "torch": opponent.why}
    scaled = f" on {asked} of {size.queries} queries, scaled up" if opponent.there and asked < size.queries else ""
    title = (
        f"{facts['devices']} × {facts['device']}, {arguments.dtype}; {size.queries} queries, {size.gallery} images of "
        f"{size.descriptors} × {size.width} float16 in HDF5. Ours includes compilation. PyTorch: {opponent.why}{scaled}; it "
        "scores Medium and Hard apart and reads whole rows rank by rank.\n\n"
    )
    return {**facts, "torch_queries": asked, "rows": rows}, title + markdown(rows, HEADINGS)


def _row(
    config: AMESConfig,
    size: Size,
    manifest: Path,
    scratch: Path,
    shape: Shape,
    opponent: Opponent,
    asked: int,
    repeats: int,
) -> dict[str, Any]:
    model, weights = random_model(config)
    timed = [_ours(model, manifest, scratch, shape, size.listed) for _ in range(repeats)]
    seconds, logits, indices = sorted(timed, key=lambda found: found[0])[len(timed) // 2]
    scored = int(np.isfinite(logits).sum())
    row = {
        "shape": f"{shape[0]}×{shape[1]}", "queries": size.queries, "rerank": size.listed, "seconds": seconds,
        "pairs": scored, "pairs_per_second": scored / seconds,
    }  # fmt: skip
    if not opponent.there:
        return row
    folder = manifest.parent
    settings = {
        "config": dataclasses.asdict(config), "dtype": config.dtype, "rerank": size.listed, "lengths": shape,
        "query": str(folder / "query.hdf5"), "gallery": str(folder / "gallery.hdf5"),
        "ground_truth": str(folder / "ground_truth.json"),
    }  # fmt: skip
    arrays = {f"param/{name}": array for name, array in weights.items()}
    ranks = np.load(folder / "neighbours" / "indices.npy")[:asked]
    theirs = opponent.run("evaluate", settings, {**arrays, "ranks": ranks})
    differences = []
    for protocol in ("medium", "hard"):
        images = theirs[f"{protocol}_images"]
        columns = np.stack(
            [np.argsort(known)[np.searchsorted(np.sort(known), row)] for known, row in zip(indices, images)]
        )
        ours = np.take_along_axis(logits[:asked], columns, 1)
        differences.append(compare(f"{protocol} logits", ours, theirs[f"{protocol}_logits"], TOLERANCE[config.dtype]))
    scale = size.queries / asked
    row |= {
        "torch_seconds": float(theirs["seconds"]) * scale, "torch_pairs": int(2 * ranks.shape[0] * size.listed * scale),
        "difference": max(differences),
    }  # fmt: skip
    row["ratio"] = row["torch_seconds"] / seconds
    return row


def _ours(model: Any, manifest: Path, scratch: Path, shape: Shape, rerank: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds of `ames_jax.evaluate` from a saved model to results.json; its logits [Nq, C] and their images."""
    from ames_jax.model.weights import save_model
    from ames_jax.report.evaluation import evaluate
    from ames_jax.runtime.command_line import load_config

    settings = load_config(CONFIG)
    settings.update(
        data_dir=str(manifest), dataset="custom", model=str(save_model(model, scratch / "model")), rerank=str(rerank),
        query_descriptors=shape[0], database_descriptors=shape[1], lam="0.5", gamma="0.2",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=scratch) as workdir, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        evaluate(settings, Path(workdir))
        seconds = time.perf_counter() - start
        with np.load(Path(workdir) / "logits.npz") as file:
            return seconds, file["logits"], file["indices"]
