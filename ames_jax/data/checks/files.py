"""Checks release files and data sets, one by one and against each other; every problem says what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ames_jax.data.checks.folders import check_folder
from ames_jax.data.checks.hdf5 import check_global, check_local
from ames_jax.data.checks.lists import (
    check_ground_truth,
    check_label_agreement,
    check_list_order,
    check_neighbours,
    check_text_list,
)
from ames_jax.data.checks.reports import Report
from ames_jax.data.lists import RELEASE, ImageList, read_list
from ames_jax.data.release_files import read_ground_truth, read_neighbours
from ames_jax.data.release_hdf5 import open_hdf5
from ames_jax.runtime.errors import UserError

ROLES = ("query", "gallery", "train")


@dataclasses.dataclass
class _Files:
    """What the checked files hold, for the checks of one against the other; counts by role: (path, images)."""

    counts: dict[str, list[tuple[Path, int]]] = dataclasses.field(default_factory=lambda: {r: [] for r in ROLES})
    lists: dict[str, tuple[Path, ImageList]] = dataclasses.field(default_factory=dict)
    neighbours: list[Path] = dataclasses.field(default_factory=list)
    ground_truth: list[Path] = dataclasses.field(default_factory=list)

    @property
    def searched(self) -> tuple[str, str]:
        """Roles of the images that neighbour lists are of, and of those they name."""
        is_test = any(self.counts[role] for role in ("query", "gallery"))
        return ("query", "gallery") if is_test else ("train", "train")

    def count(self, role: str) -> int | None:
        """Images of a role, None when no file tells."""
        return self.counts[role][0][1] if self.counts[role] else None


def validate(paths: Sequence[str | Path], *, full: bool = False, block_bytes: int = 64 * 2**20) -> Report:
    """Checks files of one data set; `.hdf5`, `.npy`, `.pkl`, `.txt`, and folders that `prepare` wrote.

    The role of a file follows from its name, as in the release: with "query", with "gallery", or neither (training).
    Values of large files are sampled unless `full`; memory stays at a few `block_bytes`.
    """
    report = Report()
    files = _Files()
    for path in map(Path, paths):
        try:
            _check_one(path, files, report, full, block_bytes)
        except UserError as error:
            report.problem(None, str(error))
    for role in ROLES:
        counts = files.counts[role]
        for path, count in counts[1:]:
            if count != counts[0][1]:
                first, expected = counts[0]
                report.problem(path, f"{count} images, but {first} has {expected}: they are not of the same images")
    _check_searches(files, report, full)
    return report


def _check_one(path: Path, files: _Files, report: Report, full: bool, block_bytes: int) -> None:
    role = next((role for role in ROLES if role in path.stem), "train")
    if path.is_dir():
        check_folder(path, report, full=full, block_bytes=block_bytes)
    elif path.suffix in (".hdf5", ".h5", ".npy"):
        check = check_global if path.suffix == ".npy" or _is_global(path) else check_local
        files.counts[role].append((path, check(path, report, full=full, block_bytes=block_bytes)))
    elif path.suffix == ".txt":
        images = read_list(path, RELEASE)
        check_text_list(path, images, report)
        files.lists[role] = (path, images)
        files.counts[role].append((path, len(images)))
    elif path.suffix == ".pkl":
        kind = files.ground_truth if path.stem.startswith("gnd") else files.neighbours
        kind.append(path)
    else:
        raise UserError(f"{path}: expected .hdf5, .npy, .pkl, .txt or the folder of a data set")


def _is_global(path: Path) -> bool:
    with open_hdf5(path) as file:
        return "features" in file and file["features"].ndim == 2 and not file["features"].dtype.names


def _check_searches(files: _Files, report: Report, full: bool) -> None:
    query_role, database_role = files.searched
    queries, database = files.count(query_role), files.count(database_role)
    for path in files.neighbours:
        try:
            similarities, indices = read_neighbours(path)
        except UserError as error:
            report.problem(None, str(error))
            continue
        check_neighbours(
            path, similarities, indices, report, queries=queries, database=database,
            itself=query_role == database_role, full=full,
        )  # fmt: skip
        if query_role == database_role and query_role in files.lists:
            list_path, images = files.lists[query_role]
            if images.labels is not None and len(images) == len(indices):
                check_label_agreement(list_path, path, images.labels, indices, report)
    for path in files.ground_truth:
        try:
            truth, database_ids, query_ids = read_ground_truth(path)
        except UserError as error:
            report.problem(None, str(error))
            continue
        check_ground_truth(path, truth, report, queries=queries, database=database)
        for role, ids in (("query", query_ids), ("gallery", database_ids)):
            if ids is not None and role in files.lists:
                check_list_order(*files.lists[role], path, ids, report)
