"""From a folder to a retrieval set (the release's, a prepared one, a manifest), and facts on how its parts were extracted."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from ames_jax.data.readers import ConcatenatedReader, DescriptorReader
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import read_ground_truth
from ames_jax.data.shards import DescriptorSource, read_about
from ames_jax.data.store import open_store
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.manifest import open_manifest, read_lists
from ames_jax.retrieval.protocols import DATASETS, FOLDERS, protocols_of
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json

MANIFEST = "manifest.json"
SETTINGS = ("name", "block")  # of the backbone; the rest that counts is in `input`


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
    return dataclasses.replace(data, database=open_store(store)) if store else data


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


def origins(data: RetrievalSet) -> dict[str, dict[str, Any]]:
    """Side → how it was extracted, as its data set's about.json says; {} of descriptors that were not extracted here.

    Keys: name of the backbone, max_side, resized, channels, sha256 (of weights), boxes (images of which a part was extracted).
    """
    found = {"query": origin_of(data.queries), "gallery": origin_of(data.database)}
    return {side: facts for side, facts in found.items() if facts}


def origin_of(reader: DescriptorReader) -> dict[str, Any]:
    """See `origins`."""
    if isinstance(reader, DescriptorSource):
        root, split = reader.root, reader.split
    elif isinstance(reader, ReleaseSource) and not reader.virtual:  # that extract wrote beside its shards
        root, split = reader.path.parent, reader.path.name.partition("_")[2].removesuffix("_local.hdf5")
    else:
        return {}
    about = read_about(root)
    settings = about.get("extraction")
    if not isinstance(settings, dict):
        return {}
    facts = {key: settings[key] for key in (*SETTINGS, "max_side") if settings.get(key) is not None}
    extracted = read_json(root / "images" / f"{split}.extracted.json", keys={"boxes?": int}, missing={})
    return facts | about.get("input", {}) | {key: extracted[key] for key in ("boxes",) if key in extracted}


def check_origins(data: RetrievalSet) -> None:
    """Raises UserError, naming the fact, where queries and gallery were extracted in different ways; boxes may differ."""
    query, gallery = origin_of(data.queries), origin_of(data.database)
    for key in (key for key in query if key in gallery and key != "boxes"):
        if query[key] != gallery[key]:
            raise UserError(
                f"{data.name}: queries were extracted with {key} = {query[key]}, the gallery with {gallery[key]}: their "
                "descriptors do not compare; extract both alike"
            )


def crop_notes(data: RetrievalSet) -> list[str]:
    """A line where pictures of the gallery were cropped; that queries are is the rule of several benchmarks."""
    boxes = origin_of(data.database).get("boxes")
    return [f"note: of {boxes} pictures of the gallery a part alone was extracted"] if boxes else []
