"""`python -m ames_jax.benchmark evaluate`: a whole evaluation from HDF5 to mAP, beside the release's way in PyTorch.

The set is random descriptors in the release's HDF5 layout, with lists and ground truth of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ames_jax.benchmarks.flags import EvaluateFlags, Shape
from ames_jax.benchmarks.harness import Case, Harness, comparable, random_model
from ames_jax.benchmarks.scoring_speed import TOLERANCE
from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.release_hdf5 import METADATA
from ames_jax.model.ames import AMESConfig
from ames_jax.model.weights import save_model
from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_json

JUDGED = {"easy": 10, "hard": 10, "junk": 10}  # images per query, all somewhere in its shortlist
JUDGED_IMAGES = sum(JUDGED.values())
# What a protocol moves behind the shortlist, which stays as long.
JUNK = {"medium": ("junk",), "hard": ("junk", "easy")}
MOST_JUNK = JUDGED["easy"] + JUDGED["junk"]


def measure(flags: EvaluateFlags, config: AMESConfig | None = None) -> dict[str, Any]:
    """Measures every shape; `config` is the model (default: full precision of the released size)."""
    listed = flags.rerank + MOST_JUNK
    if flags.gallery < listed:
        raise UserError(f"--gallery={flags.gallery}: re-ranking {flags.rerank} needs at least {listed} images")
    if flags.rerank < JUDGED_IMAGES:
        raise UserError(f"--rerank={flags.rerank}: the ground truth needs at least {JUDGED_IMAGES}")
    if max(map(max, flags.shapes)) > flags.stored:
        raise UserError(f"--shapes asks for more descriptors than the --stored={flags.stored}")
    harness = Harness(flags, "evaluations", flags.dtype, flags.repeats, needs="torch, h5py")
    model, weights = random_model(comparable(config or AMESConfig(), flags.dtype))
    asked, width = min(flags.torch_queries or flags.queries, flags.queries), model.config.descriptor_width
    with tempfile.TemporaryDirectory(prefix="ames_jax_benchmark_") as temporary:
        manifest = make_set(flags.folder or Path(temporary) / "set", flags, width)
        arrays = {f"param/{name}": array for name, array in weights.items()}
        arrays |= _shortlists(manifest, flags.rerank, asked)
        save_model(model, Path(temporary) / "model")
        cases = [_case(flags, model.config, manifest, Path(temporary), shape, arrays) for shape in flags.shapes]
        rows = [harness.row(case) for case in cases]
    # One evaluation has a time, not a rate.
    rows = [{key: value for key, value in row.items() if not key.endswith("_per_second")} for row in rows]
    note = (
        f"{flags.queries} queries, {flags.gallery} images of {flags.stored} × {width} float16 in HDF5. Ours includes "
        "compilation. PyTorch scores Medium and Hard apart and reads whole rows rank by rank"
    )
    note += f", here for {asked} queries, scaled up." if asked < flags.queries else "."
    columns = {
        "shape": "Q×T",
        "rerank": "re-ranked",
        "pairs": "pairs scored",
        "seconds": "s",
        "torch_seconds": "PyTorch s",
    }
    return harness.report(columns, rows, note, torch_queries=asked)


def _shortlists(manifest: Path, rerank: int, queries: int) -> dict[str, np.ndarray]:
    """The shortlists int [queries, k] of Medium and of Hard: each moves its junk behind the others."""
    ranks = np.load(manifest.with_name("neighbours") / "indices.npy")[:queries]
    truth = json.loads(manifest.with_name("ground_truth.json").read_text())

    def shortlist(row: np.ndarray, junk: list[list[int]]) -> np.ndarray:
        hidden = np.isin(row, np.concatenate(junk))
        return np.concatenate([row[~hidden], row[hidden]])[:rerank]

    return {
        protocol: np.stack([shortlist(row, [entry[kind] for kind in kinds]) for row, entry in zip(ranks, truth)])
        for protocol, kinds in JUNK.items()
    }


def _case(
    flags: EvaluateFlags,
    config: AMESConfig,
    manifest: Path,
    scratch: Path,
    shape: Shape,
    arrays: Mapping[str, np.ndarray],
) -> Case:
    files = {part: str(manifest.with_name(f"{part}.hdf5")) for part in ("query", "gallery")}
    settings = {"config": dataclasses.asdict(config), "lengths": shape, "of": flags.queries, **files}

    def ours() -> dict[str, Any]:
        logits, indices = _evaluate(manifest, scratch, shape, flags.rerank)
        answer: dict[str, Any] = {"pairs": int(np.isfinite(logits).sum())}
        for protocol in JUNK:
            pairs = zip(indices, arrays[protocol])
            places = np.stack([np.argsort(row)[np.searchsorted(np.sort(row), asked)] for row, asked in pairs])
            answer[f"{protocol}_logits"] = np.take_along_axis(logits[: len(places)], places, 1)
        return answer

    return Case(
        row={"shape": f"{shape[0]}×{shape[1]}", "rerank": flags.rerank},
        ours=ours,
        units=1,
        job=("evaluate", settings, arrays),
        tolerance=TOLERANCE,
        warm=0,
    )


def _evaluate(manifest: Path, scratch: Path, shape: Shape, rerank: int) -> tuple[np.ndarray, np.ndarray]:
    """`ames_jax.evaluate` from the saved model to results.json: its logits [Nq, C] and their images."""
    settings = load_config("evaluate")
    settings.update(data_dir=str(manifest), dataset="custom", model=str(scratch / "model"))
    settings.update(
        rerank=str(rerank), query_descriptors=shape[0], database_descriptors=shape[1], lam="0.5", gamma="0.2"
    )
    with tempfile.TemporaryDirectory(dir=scratch) as workdir, contextlib.redirect_stdout(io.StringIO()):
        evaluate(settings, Path(workdir))
        with np.load(Path(workdir) / "logits.npz") as file:
            return file["logits"], file["indices"]


def make_set(folder: Path, flags: EvaluateFlags, width: int) -> Path:
    """Writes query.hdf5, gallery.hdf5 (float16, flat), neighbours/, ground_truth.json; returns manifest.json.

    What is there already, of the same size, is used again.
    """
    manifest, made, listed = folder / "manifest.json", folder / "size.json", flags.rerank + MOST_JUNK
    size = {"width": width, **{name: getattr(flags, name) for name in ("queries", "gallery", "rerank", "stored")}}
    if made.is_file() and json.loads(made.read_text()) == size:
        return manifest
    shutil.rmtree(folder / "neighbours", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    random = np.random.default_rng(0)
    write_hdf5(folder / "query.hdf5", flags.queries, flags.stored, width, random)
    write_hdf5(folder / "gallery.hdf5", flags.gallery, flags.stored, width, random)
    lists = [random.permutation(flags.gallery)[:listed] for _ in range(flags.queries)]
    indices = np.stack(lists).astype(np.int32)
    similarities = np.sort(random.random(indices.shape, np.float32))[:, ::-1]
    save_neighbours(folder / "neighbours", similarities, indices)
    truth = []
    for row in indices:
        judged = random.permutation(row[: flags.rerank])[:JUDGED_IMAGES]
        parts = np.split(judged, np.cumsum(list(JUDGED.values()))[:-1])
        truth.append({kind: part.tolist() for kind, part in zip(JUDGED, parts)})
    write_json(folder / "ground_truth.json", truth)
    facts = {"name": "synthetic (random descriptors)", "metric": "revisited", "first_stage": "random"}
    facts |= {part: {"descriptors": f"{part}.hdf5"} for part in ("query", "gallery")}
    write_json(manifest, {**facts, "neighbours": "neighbours", "ground_truth": "ground_truth.json"})
    write_json(made, size)
    return manifest


def write_hdf5(path: Path, images: int, descriptors: int, width: int, random: np.random.Generator) -> None:
    """float16 [images, K, 5 + D], without padding; images are windows of one long random array, cheap and all different."""
    count = descriptors * width
    values = random.standard_normal(count + 65536, np.float32).astype(np.float16)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("features", (images, descriptors, METADATA + width), np.float16)
        row = np.zeros(dataset.shape[1:], np.float16)
        row[:, METADATA - 1] = np.linspace(1, 0, descriptors)
        for i in range(images):
            row[:, METADATA:] = values[i * 61 % 65536 :][:count].reshape(descriptors, width)
            dataset[i] = row
