"""From a folder to a retrieval set: the release's, a prepared one, or own data.

The manifest of own data, a JSON file, says where queries, gallery, neighbours and relevance are:

    {
      "name": "my paintings",
      "metric": "map@100",                  "map", "map@100", "map@1000", "revisited" or "gldv2"
      "first_stage": "CLIP ViT-L",          name of the global search, printed beside every result
      "query":   {"descriptors": "query.hdf5", "list": "query.txt"},
      "gallery": {"descriptors": "gallery.store", "list": "gallery.txt"},
      "neighbours": "neighbours",           folder of indices.npy and similarities.npy, or a release nn_*.pkl
      "ground_truth": "ground_truth.json"   leave out when the lists have labels
    }

`descriptors` is an HDF5 file of the release's layout, a packed store, or `FOLDER:SPLIT` of a prepared data set. A list
has one line per image, in the order of the descriptors: `id`, or `id,label`. The ground truth is a list with one mapping
per query, `{"ok": […], "junk": […]}` or `{"easy", "hard", "junk"}`, of gallery rows or of ids from the list. With labels
instead (any text; −1 is none), an image is right when its label is the query's; the query's own id in the gallery is junk.
Paths are relative to the manifest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.lists import FORMS, NUMBER, ImageList, read_list, refuse_repeats
from ames_jax.data.readers import ConcatenatedReader, DescriptorReader
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import read_ground_truth, read_lists
from ames_jax.data.shards import open_split, origin_of
from ames_jax.data.store import open_store
from ames_jax.retrieval.judgements import KINDS, Judged, judge, judge_by_class
from ames_jax.retrieval.protocols import DATASETS, FOLDERS, metric_of, protocols_of
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.checksums import note_unchecked
from ames_jax.runtime.errors import UserError, did_you_mean, naming
from ames_jax.runtime.files import read_json
from ames_jax.runtime.schema import check_keys

MANIFEST = "manifest.json"
SIDE = {"descriptors": str, "list?": str}
KEYS = {
    "name": str,
    "metric": str,
    "first_stage": str,
    "query": SIDE,
    "gallery": SIDE,
    "neighbours": str,
    "ground_truth?": str,
}
SIDES = ("query", "gallery")
TRUTH_KEYS = (*KINDS, "bbx")


def open_set(
    data_dir: Path, dataset: str, backbone: str, first_stage: str, copies: Path, store: str | None = None
) -> RetrievalSet:
    """Opens a data set and checks that its parts belong together.

    Args:
      data_dir: a manifest or its folder (`dataset` "custom"); a prepared data set with `ground_truth/DATASET.json`;
        else the release's data folder, with one folder per data set.
      backbone: prefix of the release's descriptor files ("dinov2", "cvnet").
      first_stage: name of the release's neighbour list, nn_{first_stage}.pkl.
      copies: folder where pickled neighbour lists are imported to; used again as long as the pickle is the same.
      store: a packed store to read the database from, instead of its floats.

    Raises UserError for a missing file, an unknown data set, or parts that do not match.
    """
    names = dict.fromkeys((dataset, FOLDERS.get(dataset, dataset)))
    prepared = next((name for name in names if (data_dir / "ground_truth" / f"{name}.json").is_file()), None)
    if dataset == "custom":
        data = open_manifest(data_dir / MANIFEST if data_dir.is_dir() else data_dir, copies)
    elif prepared is not None:
        data = RetrievalSet.load(data_dir, prepared)
        # A benchmark that `prepare` made shards of is judged as that benchmark is.
        protocols = DATASETS.get(dataset, data.protocols)
        data = dataclasses.replace(data, name=f"{data.name}, {dataset}", protocols=protocols)
    else:
        data = _open_release(data_dir, dataset, backbone, first_stage, copies)
    data = dataclasses.replace(data, database=open_store(store)) if store else data
    _check_origins(data)
    return data


def _check_origins(data: RetrievalSet) -> None:
    """Raises UserError, naming the fact, where queries and gallery were extracted in different ways; boxes may differ."""
    query, gallery = origin_of(data.queries), origin_of(data.database)
    for key in (key for key in query if key in gallery and key != "boxes"):
        if query[key] != gallery[key]:
            raise UserError(
                f"{data.name}: queries were extracted with {key} = {query[key]}, the gallery with {gallery[key]}: their "
                "descriptors do not compare; extract both alike"
            )


def _open_release(data_dir: Path, dataset: str, backbone: str, first_stage: str, copies: Path) -> RetrievalSet:
    protocols = protocols_of(dataset)
    folder, base = _release_folder(data_dir, dataset)
    ground_truth, _, _ = read_ground_truth(_existing(folder, f"gnd_{base}.pkl"))
    database = ReleaseSource(_existing(folder, f"{backbone}_gallery_local.hdf5"))
    distractors = data_dir / "revisitop1m" / f"{backbone}_gallery_local.hdf5"
    if dataset.endswith("+1m") and distractors.is_file():
        database = ConcatenatedReader((database, ReleaseSource(distractors)))
    lists = read_lists(_existing(folder, f"nn_{first_stage}.pkl"), copies)
    # ELViS's lists may number a gallery of which the file of local descriptors holds some images alone.
    own = lists.local is None
    return RetrievalSet(
        name=dataset,
        first_stage=first_stage,
        ranks=lists.indices if own else lists.local,
        similarities=lists.similarities,
        judged=judge(lists.indices, ground_truth, len(database) if own else None),
        protocols=protocols,
        queries=ReleaseSource(_existing(folder, f"{backbone}_query_local.hdf5")),
        database=database,
        global_files=_global_files(folder, first_stage, distractors.parent if dataset.endswith("+1m") else None)
        if own
        else None,
        truth=functools.partial(judge, ground_truth=ground_truth, images=len(database)),
    )


def _global_files(folder: Path, first_stage: str, distractors: Path | None) -> tuple[list[Path], list[Path]] | None:
    """The global descriptors behind the lists nn_{first_stage}.pkl, where they are there: *_cls.hdf5 or *_global.hdf5."""
    for kind in ("cls", "global"):
        query, gallery = (folder / f"{first_stage}_{side}_{kind}.hdf5" for side in ("query", "gallery"))
        more = [distractors / gallery.name] if distractors else []
        if all(path.is_file() for path in (query, gallery, *more)):
            return [query], [gallery, *more]
    return None


def _release_folder(data_dir: Path, dataset: str) -> tuple[Path, str]:
    """The folder of a data set and the name in its ground truth file.

    A set with distractors has its own folder, or lies in that of the set without them, beside a `gnd_…+1m.pkl`.
    """
    name = FOLDERS.get(dataset, dataset)
    small = name.removesuffix("+1m")
    for folder in (data_dir / name, data_dir / small, data_dir):
        for base in dict.fromkeys((name, small) if folder.name == name else (name,)):
            if (folder / f"gnd_{base}.pkl").is_file():
                return folder, base
    raise UserError(
        f"no data of {dataset}: expected {data_dir / name / f'gnd_{name}.pkl'} (the release's files), "
        f"{data_dir / 'ground_truth' / f'{dataset}.json'} (prepared), or dataset=custom with {data_dir / MANIFEST}"
    )


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    pattern = name.split("_")[0] if name.startswith(("nn_", "gnd_")) else "*"
    found = sorted(other.name for other in folder.glob(f"{pattern}_*{path.suffix}"))
    raise UserError(f"{path} is missing; the folder has {', '.join(found) or 'no such files'}")


def open_manifest(path: Path, copies: Path) -> RetrievalSet:
    """The set that a manifest describes; raises UserError naming the manifest and the key that is wrong.

    copies: see `read_lists`.
    """
    manifest = read_json(path)
    note_unchecked(path)
    check_keys(manifest, KEYS, str(path), "see docs/evaluation.md", only=True)
    sides = {side: manifest[side] for side in SIDES}
    readers = {side: _open_descriptors(path, spec) for side, spec in sides.items()}
    images = {side: _read_list(path.parent, spec, readers[side]) for side, spec in sides.items()}
    if images["gallery"] is not None:
        refuse_repeats(images["gallery"].ids, path.parent / sides["gallery"]["list"])
    with naming(path):
        protocols = metric_of(manifest["metric"])
    lists = read_lists(path.parent / manifest["neighbours"], copies)
    if lists.local is not None:
        raise UserError(
            f"{path}: {manifest['neighbours']} numbers the images of another gallery than the descriptors (its third row says "
            "where these are): give lists [2, queries, neighbours] of the gallery's descriptors"
        )
    return RetrievalSet(
        name=manifest["name"],
        first_stage=manifest["first_stage"],
        ranks=lists.indices,
        similarities=lists.similarities,
        judged=_judged(path, manifest, images["query"], images["gallery"], lists.indices, len(readers["gallery"])),
        protocols=protocols,
        queries=readers["query"],
        database=readers["gallery"],
    )


def _open_descriptors(path: Path, spec: Mapping[str, str]) -> DescriptorReader:
    text = spec["descriptors"]
    place = path.parent / text
    if (place / "header.json").is_file():
        return open_store(place)
    if place.is_file():
        return ReleaseSource(place)
    root, colon, split = text.rpartition(":")
    if colon and (path.parent / root).is_dir():
        return open_split(path.parent / root, split)
    raise UserError(f"{path}: descriptors {text!r} is neither an HDF5 file, a packed store nor FOLDER:SPLIT")


def _read_list(folder: Path, spec: Mapping[str, str], reader: DescriptorReader) -> ImageList | None:
    """The list of a side, None where it has none; a label that is a name stays part of the id."""
    if "list" not in spec:
        return None
    images = read_list(folder / spec["list"], FORMS[:2])
    if len(images) != len(reader):
        raise UserError(
            f"{folder / spec['list']} lists {len(images)} images, {spec['descriptors']} holds {len(reader)}: give the list "
            "that the descriptors were extracted from, without a header line"
        )
    return images


def _judged(
    path: Path,
    manifest: Mapping[str, Any],
    query: ImageList | None,
    gallery: ImageList | None,
    ranks: np.ndarray,
    images: int,
) -> Judged:
    row_of = {name: row for row, name in enumerate(gallery.ids)} if gallery else {}
    if "ground_truth" in manifest:
        place = path.parent / manifest["ground_truth"]
        entries = [_rows(place, query, entry, row_of) for query, entry in enumerate(read_json(place, list))]
        note_unchecked(place)
        with naming(place):
            return judge(ranks, entries, images)
    query_names, gallery_names = (
        _names(path.parent / manifest[side].get("list", ""), images)
        for side, images in (("query", query), ("gallery", gallery))
    )
    if query_names is None or gallery_names is None:
        raise UserError(f"{path}: give ground_truth, or lists with a label on every line for query and gallery")
    refuse_repeats([name for name, _ in gallery_names], path.parent / manifest["gallery"]["list"])
    row_of = {name: row for row, (name, _) in enumerate(gallery_names)}
    own = np.array([row_of.get(name, -1) for name, _ in query_names], np.int64)
    number = {
        name: label for label, name in enumerate(dict.fromkeys(label for _, label in gallery_names + query_names))
    }
    number["-1"] = -1
    labels = [np.array([number[label] for _, label in names], np.int64) for names in (query_names, gallery_names)]
    with naming(path):
        judged = judge_by_class(ranks, *labels, own)
    if not judged.counts[:, KINDS.index("ok")].any():
        raise UserError(f"{path}: no query has a right image: no label of the query list is in the gallery list")
    return judged


def _names(path: Path, images: ImageList | None) -> list[tuple[str, str]] | None:
    """The id and the label, as text, of every image of a list; None where it has no labels.

    Raises UserError where some labels are numbers and others are not: one of them is mistyped.
    """
    if images is None:
        return None
    if images.labels is not None:
        return list(zip(images.ids, map(str, images.labels.tolist())))
    named = [line.rpartition(",") for line in images.ids]
    if not all(name for name, _, _ in named):
        return None
    labels = [label.strip() for _, _, label in named]
    for row, label in enumerate(labels):
        if label != "-1" and bool(NUMBER.fullmatch(label)) != bool(NUMBER.fullmatch(labels[0])):
            raise UserError(
                f"{path} line {row + 1}: the label {label!r}, and {labels[0]!r} in line 1: expected numbers alone, or names"
            )
    return list(zip((name.strip() for name, _, _ in named), labels))


def _rows(path: Path, query: int, entry: Any, row_of: Mapping[str, int]) -> dict[str, list]:
    """A ground truth entry with ids replaced by gallery rows; `judge` refuses what is no row."""
    if not isinstance(entry, dict) or not all(isinstance(names, list) for names in entry.values()):
        raise UserError(f"{path}: query {query}: expected lists such as ok and junk, found {str(entry)[:60]}")
    for kind in entry.keys() - set(TRUTH_KEYS):
        raise UserError(f"{path}: query {query}: unknown list {kind!r}{did_you_mean(kind, KINDS)}")
    unknown = [name for names in entry.values() for name in names if isinstance(name, str) and name not in row_of]
    if unknown:
        raise UserError(f"{path}: query {query} names {unknown[0]!r}, which the gallery's list does not have")
    return {kind: [row_of[name] if isinstance(name, str) else name for name in names] for kind, names in entry.items()}
