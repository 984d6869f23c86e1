"""Checks of a data set that `prepare` wrote: its shards, its neighbour lists and its ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ames_jax.data.checks.hdf5 import check_global, check_local
from ames_jax.data.checks.lists import check_ground_truth, check_label_agreement, check_neighbours
from ames_jax.data.checks.reports import Report
from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.records import RecordFormat
from ames_jax.data.release_files import ReleaseSource
from ames_jax.data.shard_tasks import check_shard
from ames_jax.data.shards import open_split
from ames_jax.runtime.errors import UserError

LINK = ".source.json"


def check_folder(root: Path, report: Report, *, full: bool, block_bytes: int) -> None:
    """Every shard in full against its count and checksum, then global descriptors, lists and ground truth against them.

    Raises:
      UserError: the folder holds no finished data set.
    """
    path = root / "shards.json"
    linked = [link.name.removesuffix(LINK) for link in sorted(root.glob(f"*{LINK}"))]
    if not path.exists() and not linked:
        raise UserError(f"{root} is no finished data set (no shards.json): run `prepare shards` to its end")
    counts: dict[str, int] = {}
    for split, entry in json.loads(path.read_text()).items() if path.exists() else ():
        counts[split] = _check_shards(root, split, entry, report)
    for split in linked:
        source = open_split(root, split)
        counts[split] = check_local(source.local.path, report, full=full, block_bytes=block_bytes)
    for path in sorted((root / "global").glob("*.npy")):
        count = check_global(path, report, full=full, block_bytes=block_bytes)
        if counts.get(path.stem, count) != count:
            report.problem(
                path, f"{count} images, but split {path.stem} has {counts[path.stem]}: write the split again"
            )
    _check_searches(root, counts, report, full)


def _check_shards(root: Path, split: str, entry: dict, report: Report) -> int:
    settings = entry["settings"]
    record_format = RecordFormat(
        settings["descriptors"], settings["width"], settings["dtype"], tuple(settings["geometry"])
    )
    ids: list[str] = []
    labels: list[int] = []
    before = len(report.problems)
    for name, file in entry["files"].items():
        problem = check_shard(root / name, file["records"], file["sha256"], record_format, ids, labels)
        if problem:
            report.problem(None, problem)
    if len(report.problems) == before:
        source = open_split(root, split)
        if ids != source.ids() or not np.array_equal(labels, source.labels()):
            report.problem(root, f"ids or labels of {split} are not those of its records: write the data set again")
    report.line(
        f"{root} {split}: {settings['dtype']} {len(ids)} images × {settings['descriptors']} × {settings['width']}"
    )
    return settings["images"]


def _check_searches(root: Path, counts: dict[str, int], report: Report, full: bool) -> None:
    for folder in sorted(path for path in (root / "neighbours").glob("*.*") if path.is_dir()):
        query, database = folder.name.split(".", 1)
        lists = open_neighbours(folder)
        check_neighbours(
            folder, lists.similarities, lists.indices, report, queries=counts.get(query),
            database=counts.get(database), itself=query == database, full=full,
        )  # fmt: skip
        if query == database and counts.get(query) == len(lists):
            labels = _labels(root, query)
            if labels is not None:
                check_label_agreement(root, folder, labels, lists.indices, report)
    for path in sorted((root / "ground_truth").glob("*.json")):
        truth = json.loads(path.read_text())
        sides = {"queries": counts.get(truth["query"]), "database": counts.get(truth["database"])}
        check_ground_truth(path, truth["queries"], report, **sides)


def _labels(root: Path, split: str) -> np.ndarray | None:
    source = open_split(root, split)
    if isinstance(source, ReleaseSource) and source.arguments["images"] is None:
        return None
    labels = source.labels()
    return None if (labels < 0).all() else labels
