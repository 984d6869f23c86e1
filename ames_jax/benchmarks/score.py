"""`python -m ames_jax.benchmark score`: pairs a second of queries against shortlists, beside the release in PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from ames_jax.benchmarks import first_call, flops
from ames_jax.benchmarks.machine import comparable, describe, matmul_peak, median_seconds, peak_memory, random_model
from ames_jax.benchmarks.memory import reset_peak
from ames_jax.benchmarks.opponent import Opponent, compare, progress
from ames_jax.benchmarks.options import Shape, add_compute, check_positive, existing_python, use_devices, whole_numbers
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMESConfig
from ames_jax.report.plain_tables import markdown
from ames_jax.retrieval.scoring import Scorer

SHAPES = "600x50,600x600,100x100,100x50,50x50,10x10"
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1}
HEADINGS = {
    "shape": "Q×T", "shortlist": "shortlist", "pairs_per_second": "pairs/s", "torch_pairs_per_second": "PyTorch pairs/s",
    "ratio": "ratio", "torch_best_pairs_per_second": "PyTorch at its best", "best_ratio": "ratio to it",
    "gflops": "GFLOP/s", "share": "of matmul peak", "peak_mb": "peak MB", "torch_peak_mb": "PyTorch peak MB",
    "difference": "largest difference",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--shortlist", type=whole_numbers, default=[100], help="images a query, comma list (default: 100)")
    add("--queries", type=int, default=4, help="queries that ours scores in a timing (default: 4; PyTorch scores one)")
    add("--torch-pairs", type=int, default=100, help="PyTorch scores no more pairs in a timing (default: 100)")
    add("--torch-batch", type=int, default=300, help="pairs PyTorch scores at a time (default: 300, as in the release)")
    add("--skip-first-call", action="store_true", help="do not time a fresh process up to its first shortlist")
    add("--torch-compile", action="store_true", help="torch.compile the PyTorch model")
    add_compute(parser, SHAPES)


def run(arguments: argparse.Namespace, config: AMESConfig | None = None) -> tuple[dict[str, Any], str]:
    """Measures every shape with every shortlist; `config` is the model (default: full precision of the released size)."""
    check_positive(arguments, ["shortlist", "queries", "torch_pairs", "torch_batch", "repeats"])
    use_devices(arguments.devices)
    opponent = Opponent(existing_python(arguments.torch_python))
    config = comparable(config or AMESConfig(), arguments.dtype)
    peak = matmul_peak(arguments.dtype)
    model, weights = random_model(config)
    rows = []
    for shape in arguments.shapes:
        for images in arguments.shortlist:
            progress(f"{shape[0]} × {shape[1]}, shortlist {images}")
            rows.append(_row(arguments, Scorer(model), weights, opponent, shape, images, peak))
    facts = {**describe(), "dtype": arguments.dtype, "matmul_gflops": peak / 1e9, "torch": opponent.why}
    if not arguments.skip_first_call:
        progress("a fresh process")
        facts["first_call_seconds"] = first_call.seconds(*arguments.shapes[0], arguments.shortlist[0])
    title = (
        f"{facts['devices']} × {facts['device']}, {arguments.dtype}; 2048³ matrix product: {peak / 1e9:,.0f} GFLOP/s a "
        f"device. Medians of {arguments.repeats}, warm. GFLOP/s counts only what a score needs. PyTorch: {opponent.why}"
    )
    if opponent.there:
        title += f", {arguments.torch_batch} pairs at a time or all; at its best: the fastest of some batch sizes"
    title += ".\n\n"
    text = title + markdown(rows, HEADINGS)
    if "first_call_seconds" in facts:
        text += (
            f"\n\nA fresh process, from its start to the scores of its first shortlist of {arguments.shortlist[0]} at "
            f"{rows[0]['shape']}, programs cached: {facts['first_call_seconds']:.1f} s."
        )
    return {**facts, "rows": rows}, text


def _row(
    arguments: argparse.Namespace,
    scorer: Scorer,
    weights: dict,
    opponent: Opponent,
    shape: Shape,
    images: int,
    peak: float,
) -> dict[str, Any]:
    config, (q, t) = scorer.config, shape
    random = np.random.default_rng(0)
    queries = random.standard_normal((arguments.queries, q, config.descriptor_width), np.float32)
    database = random.standard_normal((images, t, config.descriptor_width), np.float32)
    row: dict[str, Any] = {"shape": f"{q}×{t}", "shortlist": images}
    theirs = None
    if opponent.there:
        settings = {
            "config": dataclasses.asdict(config), "dtype": config.dtype, "repeats": arguments.repeats,
            "batch": arguments.torch_batch, "compile": arguments.torch_compile,
        }  # fmt: skip
        arrays = {f"param/{name}": array for name, array in weights.items()}
        arrays |= {"query": queries[0], "database": database[: arguments.torch_pairs]}
        theirs = opponent.run("score", settings, arrays)
    lists = np.tile(np.arange(images), (arguments.queries, 1))
    sides = DescriptorSet(queries), DescriptorSet(database)
    logits = scorer.shortlists(*sides, lists)
    if theirs is not None:
        ours = logits[0, : len(theirs["logits"])]
        row["difference"] = compare(f"logits of {row['shape']}", ours, theirs["logits"], TOLERANCE[config.dtype])
    reset_peak()
    seconds = median_seconds(lambda: scorer.shortlists(*sides, lists), arguments.repeats)
    work = arguments.queries * flops.shortlist(config, q, t, images)
    row |= {
        "pairs_per_second": lists.size / seconds, "gflops": work / seconds / 1e9,
        "share": work / seconds / (peak * jax.local_device_count()), "peak_mb": peak_memory() / 1e6,
        "gflop_per_pair": work / lists.size / 1e9, "dense_gflop_per_pair": flops.dense_pair(config, q, t) / 1e9,
    }  # fmt: skip
    if theirs is not None:
        count = len(theirs["logits"])
        rate, best = count / float(theirs["seconds"]), count / float(theirs["best_seconds"])
        row |= {"torch_pairs_per_second": rate, "ratio": row["pairs_per_second"] / rate}
        row |= {"torch_best_pairs_per_second": best, "best_ratio": row["pairs_per_second"] / best}
        row |= {"torch_peak_mb": float(theirs["peak_bytes"]) / 1e6, "torch_batch": int(theirs["batch"])}
    return row
