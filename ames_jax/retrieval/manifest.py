"""Own data: a JSON file that says where queries, gallery, neighbours and relevance are.

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
has one line per image, in the order of the descriptors: `id`, or `id,label` with an integer label. The ground truth is a
list with one mapping per query, `{"ok": […], "junk": […]}` or `{"easy", "hard", "junk"}`, of gallery rows or of ids from
the list. With labels instead, an image is right when its label is the query's; the query's own id in the gallery is junk.
Paths are relative to the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.lists import FORMS, ImageList, read_list
from ames_jax.data.neighbours import Neighbours, open_neighbours
from ames_jax.data.readers import DescriptorReader
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import import_neighbours
from ames_jax.data.shards import open_split
from ames_jax.data.store import open_store
from ames_jax.retrieval.judgements import Judged, judge, judge_by_class
from ames_jax.retrieval.protocols import metric_of
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.files import read_json

REQUIRED = ("name", "metric", "first_stage", "query", "gallery", "neighbours")
OPTIONAL = ("ground_truth",)


def open_manifest(path: Path, copies: Path) -> RetrievalSet:
    """The set that a manifest describes; raises UserError naming the manifest and the key that is wrong.

    copies: see `read_lists`.
    """
    manifest = read_json(path)
    _check_keys(path, manifest)
    sides = {side: manifest[side] for side in ("query", "gallery")}
    images = {
        side: read_list(path.parent / spec["list"], FORMS[:2]) if "list" in spec else None
        for side, spec in sides.items()
    }
    lists = read_lists(path.parent / manifest["neighbours"], copies)
    return RetrievalSet(
        name=manifest["name"],
        first_stage=manifest["first_stage"],
        ranks=lists.indices,
        similarities=lists.similarities,
        judged=_judged(path, manifest, images["query"], images["gallery"], lists.indices),
        protocols=metric_of(manifest["metric"]),
        queries=_open_descriptors(path, sides["query"]),
        database=_open_descriptors(path, sides["gallery"]),
    )


def read_lists(place: Path, copies: Path) -> Neighbours:
    """Neighbour lists, memory-mapped, from a folder of ours or a release `nn_*.pkl`, which is imported to `copies` first.

    Raises UserError for a pickle that is refused, or holds indices that its floats cannot (a database beyond 2²⁴ images).
    """
    if place.suffix != ".pkl":
        return open_neighbours(place)
    if not place.is_file():
        raise UserError(f"{place} is missing")
    facts = {"path": str(place.resolve()), "bytes": place.stat().st_size, "modified": place.stat().st_mtime_ns}
    folder = copies / hashlib.sha256(facts["path"].encode()).hexdigest()[:16]
    if not (folder / "about.json").is_file() or facts.items() - read_json(folder / "about.json").items():
        import_neighbours(place, folder, about=facts)
    return open_neighbours(folder)


def _check_keys(path: Path, manifest: Mapping[str, Any]) -> None:
    for key in manifest:
        if key not in REQUIRED + OPTIONAL:
            raise UserError(f"{path}: unknown key {key!r}{did_you_mean(key, REQUIRED + OPTIONAL)}")
    missing = [key for key in REQUIRED if key not in manifest]
    missing += [f"{side}.descriptors" for side in ("query", "gallery") if "descriptors" not in manifest.get(side, {})]
    if missing:
        raise UserError(f"{path}: missing {', '.join(missing)}")


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


def _judged(
    path: Path, manifest: Mapping[str, Any], query: ImageList | None, gallery: ImageList | None, ranks: np.ndarray
) -> Judged:
    row_of = {name: row for row, name in enumerate(gallery.ids)} if gallery else {}
    if "ground_truth" in manifest:
        entries = read_json(path.parent / manifest["ground_truth"], list)
        return judge(ranks, [_rows(path, entry, row_of) for entry in entries])
    if query is None or gallery is None or query.labels is None or gallery.labels is None:
        raise UserError(f"{path}: give ground_truth, or lists with a label on every line for query and gallery")
    own = np.array([row_of.get(name, -1) for name in query.ids], np.int64)
    return judge_by_class(ranks, query.labels, gallery.labels, own)


def _rows(path: Path, entry: Mapping[str, list], row_of: Mapping[str, int]) -> dict[str, list[int]]:
    """A ground truth entry with ids replaced by gallery rows."""
    rows: dict[str, list[int]] = {}
    for kind, names in entry.items():
        unknown = [name for name in names if isinstance(name, str) and name not in row_of]
        if unknown:
            raise UserError(f"{path}: the ground truth names {unknown[0]!r}, which the gallery's list does not have")
        rows[kind] = [row_of[name] if isinstance(name, str) else int(name) for name in names]
    return rows
