"""Facts about how both sides of a retrieval set were extracted, and the refusal of two that were not extracted alike."""

from __future__ import annotations

from typing import Any

from ames_jax.data.readers import DescriptorReader
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.shards import DescriptorSource, read_about
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json

SETTINGS = ("name", "block")  # of the backbone; the rest that counts is in `input`


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
