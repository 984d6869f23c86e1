"""Checks release files and data sets, one by one and against each other; every problem says what to do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from ames_jax.data.checks.contents import (
    BLOCK_BYTES,
    check_global,
    check_ground_truth,
    check_label_agreement,
    check_list_order,
    check_local,
    check_neighbours,
    check_text_list,
)
from ames_jax.data.checks.reports import Report
from ames_jax.data.lists import ImageList, read_list
from ames_jax.data.neighbours import LOCAL, Neighbours, open_neighbours
from ames_jax.data.records import RecordFormat, read_finished, read_shard
from ames_jax.data.release_hdf5 import ReleaseSource, features_of, open_hdf5
from ames_jax.data.release_pickles import TRUTH, read_ground_truth, read_neighbours
from ames_jax.data.safe_pickle import read_pickle
from ames_jax.data.shards import LINK, open_split
from ames_jax.runtime import checksums
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json
from ames_jax.runtime.progress import Progress

# Of a data set, what has no checksums of its own; shards have those of shards.json.
RECORDED = (
    *("about.json", "shards.json", "dataset_info.json", "features.json", "*.source.json", "images/*.*", "global/*.npy"),
    *("neighbours/*/*.npy", "neighbours/*/about.json", "ground_truth/*.json"),
    *("indices.npy", "similarities.npy", LOCAL),  # of a folder of neighbour lists
)
LISTS, PYTORCH = (".txt", ".csv", ".tsv"), (".pt", ".pth", ".bin", ".tar", ".ckpt")
ROLES = ("query", "gallery", "train", "distractors")
# Images of the galleries of benchmarks, by the name of their folder; a set with "+1m" is searched in both.
DISTRACTORS, GALLERIES = 1_001_001, {"roxford5k": 4_993, "rparis6k": 6_322}
GALLERIES |= {"revisitop1m": DISTRACTORS, **{f"{name}+1m": n + DISTRACTORS for name, n in GALLERIES.items()}}


@dataclasses.dataclass
class Files:
    """Content of the checked files, for the checks of one against the other.

    Attributes:
      counts: (path, images) of the files of each role. lists: path and content of the text list of a role.
      neighbours, ground_truth: pickles.
    """

    counts: dict[str, list[tuple[Path, int]]] = dataclasses.field(default_factory=lambda: {r: [] for r in ROLES})
    lists: dict[str, tuple[Path, ImageList]] = dataclasses.field(default_factory=dict)
    neighbours: list[Path] = dataclasses.field(default_factory=list)
    ground_truth: list[Path] = dataclasses.field(default_factory=list)

    def count(self, role: str) -> int | None:
        """Images of a role, None when no file tells."""
        return self.counts[role][0][1] if self.counts[role] else None

    def searched(self, pickle: Path, role: str) -> int | None:
        """Images that the rows in a pickle count: those of a role and, for a set with distractors, these behind them."""
        own, distractors = self.count(role), self.count("distractors")
        if "+1m" not in (pickle.stem[-3:], pickle.parent.name[-3:]) or (own or 0) > DISTRACTORS:
            return own
        return None if own is None or distractors is None else own + distractors


def validate(paths: Sequence[str | Path], *, full: bool = False, block_bytes: int = BLOCK_BYTES) -> Report:
    """Checks files of one data set; `.hdf5`, `.npy`, `.pkl`, `.txt`, and folders that `prepare` wrote.

    By themselves `.json` and PyTorch's files, which are only read.

    The role of a file follows from its name, as in the release: with "query", with "gallery", or neither (training).
    Values of large files are sampled unless `full`; memory stays at a few `block_bytes`.
    """
    report, files = Report(), Files()
    for path in map(Path, paths):
        with report.gathering():
            _check_file(path, files, report, full=full, block_bytes=block_bytes)
    for counts in files.counts.values():
        for path, count in counts[1:]:
            first, expected = counts[0]
            if count != expected:
                report.problem(path, f"{count} images, but {first} has {expected}: they are not of the same images")
    _check_pickles(files, report, full)
    return report


def record_checksums(paths: Sequence[str | Path]) -> None:
    """Keeps sizes and checksums of files, and of the lists, global descriptors, neighbours and facts of data sets."""
    for path in map(Path, paths):
        places = [path] if path.is_file() else [file for pattern in RECORDED for file in sorted(path.glob(pattern))]
        for folder, group in itertools.groupby(places, lambda place: place.parent):
            with Progress(f"checksums of {folder}"):
                checksums.record(folder, *(place.name for place in group))


def _check_file(path: Path, files: Files, report: Report, **options: Any) -> None:
    if path.is_file():
        with Progress(f"checksum of {path.name}"):
            checksums.check(path, whole=True)
    role = next((role for role in ROLES if role in path.stem), "train")
    if role == "gallery" and path.parent.name == "revisitop1m":
        role = "distractors"
    if path.is_dir():
        _check_folder(path, report, **options)
    elif path.suffix in (".hdf5", ".h5", ".npy"):
        check = check_global if path.suffix == ".npy" or _is_global(path) else check_local
        count = check(path, report, **options)
        files.counts[role].append((path, count))
        expected = GALLERIES.get(path.parent.name, count) if role in ("gallery", "distractors") else count
        if count != expected:
            report.problem(
                path, f"{count:,} images, expected the {expected:,} of {path.parent.name}: download it again"
            )
    elif path.suffix in LISTS:
        images = read_list(path)
        check_text_list(path, images, report)
        files.lists[role] = (path, images)
        files.counts[role].append((path, len(images)))
    elif path.suffix == ".pkl":
        (files.ground_truth if path.stem.startswith("gnd") else files.neighbours).append(path)
    elif path.suffix == ".json":
        read_json(path, object)
        report.line(f"{path}: JSON")
    elif path.suffix in PYTORCH:
        read_pickle(path)
        report.line(f"{path}: a file of PyTorch's")
    elif path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "numpy") as file:
                report.line(f"{path}: {len(file.keys())} arrays")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as safetensors: {error}; copy it again") from error
    else:
        raise UserError(
            f"{path}: expected .hdf5, .npy, .pkl, .txt, .json, .safetensors, a file of PyTorch's or the folder of a data set"
        )


def _is_global(path: Path) -> bool:
    with open_hdf5(path) as file:
        features = features_of(file, path)
        return features.ndim == 2 and not features.dtype.names


def _check_pickles(files: Files, report: Report, full: bool) -> None:
    query, database = ("query", "gallery") if files.counts["query"] or files.counts["gallery"] else ("train", "train")
    for path in files.neighbours:
        counts = {"queries": files.count(query), "database": files.searched(path, database)}
        with report.gathering():
            lists = Neighbours(*read_neighbours(path)[::-1])
            check_neighbours(path, lists, report, **counts, itself=query == database, full=full)
            list_path, images = files.lists.get(query, (path, None))
            if query == database and images and images.labels is not None and len(images) == len(lists):
                check_label_agreement(list_path, path, images.labels, lists.indices, report)
    for path in files.ground_truth:
        counts = {"queries": files.count(query), "database": files.searched(path, database)}
        with report.gathering():
            truth, database_ids, query_ids = read_ground_truth(path)
            check_ground_truth(path, truth, report, **counts)
            for role, ids in (("query", query_ids), ("gallery", database_ids)):
                if ids is not None and role in files.lists:
                    check_list_order(*files.lists[role], path, ids, report)


def _check_folder(root: Path, report: Report, **options: Any) -> None:
    """Every shard in full against its count and checksum, then global descriptors, lists and ground truth against them."""
    path = root / "shards.json"
    linked = [link.name.removesuffix(LINK) for link in sorted(root.glob(f"*{LINK}"))]
    lists = (root / "indices.npy").exists()
    if not path.exists() and not linked and not lists:
        raise UserError(f"{root} is no finished data set (no shards.json): run `prepare shards` to its end")
    for folder in (root, *(path for path in sorted(root.rglob("*")) if path.is_dir())):
        for name in checksums.entries(folder):
            with report.gathering(), Progress(f"checksum of {name}"):
                checksums.check(folder / name, whole=True)
                if not (folder / name).exists():
                    raise UserError(f"{folder / name} is missing: copy it again")
    if lists:
        unknown = {"queries": None, "database": None}
        check_neighbours(root, open_neighbours(root), report, **unknown, itself=False, full=options["full"])
    counts: dict[str, int] = {}
    for split, entry in read_finished(root).items():
        counts[split] = _check_shards(root, split, entry, report)
    for split in linked:
        counts[split] = check_local(open_split(root, split).path, report, **options)
    for path in sorted((root / "global").glob("*.npy")):
        count = check_global(path, report, is_empty=partial(_is_empty, root, path.stem), **options)
        if counts.get(path.stem, count) != count:
            report.problem(
                path, f"{count} images, but split {path.stem} has {counts[path.stem]}: write the split again"
            )
    for folder in sorted(path for path in (root / "neighbours").glob("*.*") if path.is_dir()):
        with report.gathering():
            _check_lists(root, folder, counts, report, options["full"])
    for path in sorted((root / "ground_truth").glob("*.json")):
        with report.gathering():
            truth = read_json(path, keys=TRUTH)
            sides = {"queries": counts.get(truth["query"]), "database": counts.get(truth["database"])}
            check_ground_truth(path, truth["queries"], report, **sides)


def _is_empty(root: Path, split: str, row: int) -> bool:
    """True where an image of a split, if there is such a split, has no local descriptors."""
    return (root / "shards.json").exists() and not open_split(root, split)[row].descriptors.valid.any()


def _check_shards(root: Path, split: str, entry: dict, report: Report) -> int:
    settings, ids, labels = entry["settings"], [], []
    shape = (settings["descriptors"], settings["width"], settings["dtype"])
    record_format = RecordFormat(*shape, tuple(settings["geometry"]))
    before = len(report.problems)
    with Progress(f"checking {split}", len(entry["files"]), "shards") as progress:
        for name, file in progress.over(entry["files"].items()):
            with report.gathering():
                found = read_shard(root / name, file["records"], file["sha256"], record_format)
                ids, labels = ids + found[0], labels + found[1]
    if len(report.problems) == before:
        source = open_split(root, split)
        if ids != source.ids() or not np.array_equal(labels, source.labels()):
            report.problem(root, f"ids or labels of {split} are not those of its records: write the data set again")
    report.line(f"{root} {split}: {shape[2]} {len(ids)} images × {shape[0]} × {shape[1]}")
    return sum(file["records"] for file in entry["files"].values())


def _check_lists(root: Path, folder: Path, counts: dict[str, int], report: Report, full: bool) -> None:
    query, database = folder.name.split(".", 1)
    lists, itself = open_neighbours(folder), query == database
    sides = {"queries": counts.get(query), "database": counts.get(database)}
    check_neighbours(folder, lists, report, **sides, itself=itself, full=full)
    if itself and counts.get(query) == len(lists):
        source = open_split(root, query)
        listed = not isinstance(source, ReleaseSource) or source.arguments["images"]
        labels = source.labels() if listed else np.empty(0)
        if (labels >= 0).any():
            check_label_agreement(root, folder, labels, lists.indices, report)
