"""Results of one model: rows for `results.json`, a table, and notes on what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ames_jax.data.release_hdf5 import MASK, WEIGHT, ReleaseSource
from ames_jax.retrieval.logits_file import PairLogits
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import SweepRow

# First stages that the released λ and γ suit: the global descriptors of the release's backbones.
RELEASED_FIRST_STAGES = ("dinov2", "cvnet", "superglobal")
LOOKED_AT = 32  # images, and descriptors of each, whose statistics are compared
LENGTH_TOLERANCE = 1e-2


def fit_notes(results: Mapping[str, Any], tuned: bool) -> list[str]:
    """One line for every sign that descriptors, first stage or setting do not belong to the model; none for a good result.

    tuned: λ and γ were given or chosen; otherwise they are the released model's, chosen after RELEASED_FIRST_STAGES.
    """
    stage, rows, notes = results["first_stage"], results["rows"], []
    for name in (key for key in stage if key != "name"):
        best = max(row[name] for row in rows)
        if best < stage[name]:
            notes.append(
                f"note: {name} is {best:.2f} re-ranked and {stage[name]:.2f} by the first stage alone. Likely causes: "
                "descriptors of another backbone, detector or image size than the model was trained on; weakest descriptors "
                "first; λ and γ chosen after another first stage (choose them with --config.tune_on)"
            )
    if not tuned and not stage["name"].startswith(RELEASED_FIRST_STAGES):
        notes.append(
            f"note: λ and γ are those of the released model, chosen after {' or '.join(RELEASED_FIRST_STAGES)}; the "
            f"first stage here is {stage['name']}: choose them with --config.tune_on"
        )
    return notes


def descriptor_notes(data: RetrievalSet) -> list[str]:
    """One line for every sign in the release's files of local descriptors that a model was not trained on such."""
    notes = []
    for side, reader in (("queries", data.queries), ("database", data.database)):
        if not isinstance(reader, ReleaseSource) or reader.layout == "plain":
            continue
        metadata, features = reader.read_raw(slice(0, LOOKED_AT), LOOKED_AT)
        real, weight = metadata[..., MASK] == 0, metadata[..., WEIGHT]
        lengths = np.linalg.norm(features[real].astype(np.float32), axis=-1)
        if (weight[real] < 0).any():
            notes.append(
                f"note: {reader.path.name} ({side}) has weights below 0, cosines with the class token: tokens of the backbone, "
                "as ELViS's extraction writes them under the same names; AMES reads its detector's features"
            )
        if ((np.diff(weight, axis=1) > 0) & real[:, 1:] & real[:, :-1]).any():
            notes.append(
                f"note: {reader.path.name} ({side}) is not sorted by falling weight: its first are not the strongest"
            )
        if not reader.packed and lengths.size and np.abs(lengths - 1).max() > LENGTH_TOLERANCE:
            notes.append(
                f"note: descriptors of {reader.path.name} ({side}) have lengths from {lengths.min():.3g} to "
                f"{lengths.max():.3g}; the release's have length 1, and ELViS projects them as they come"
            )
    return notes


def result_rows(rows: Sequence[SweepRow], pairs: PairLogits) -> list[dict[str, Any]]:
    """The rows of `results.json`: setting, descriptors, bytes of a database image, figures in percent by protocol."""
    return [
        {
            "rerank": row.setting.k,
            "lam": row.setting.lam,
            "gamma": row.setting.gamma,
            "query_descriptors": pairs.query_descriptors,
            "database_descriptors": pairs.database_descriptors,
            "bytes_per_image": pairs.bytes_per_image,
            **row.figures,
        }
        for row in rows
    ]


def results_table(results: Mapping[str, Any]) -> str:
    """Markdown: the first stage alone, then every row."""
    stage = results["first_stage"]
    figures = [key for key in stage if key != "name"]
    keys = ["rerank", "lam", "gamma", "query_descriptors", "database_descriptors", "bytes_per_image"]
    header = ["re-ranked", "λ", "γ", "query desc.", "database desc.", "bytes per image", *figures]
    lines = [
        f"### {results['dataset']}: {results['model']}, after {stage['name']}",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " ---: |" * len(header),
        "| " + " | ".join(["first stage alone", *["–"] * 5, *(f"{stage[name]:.2f}" for name in figures)]) + " |",
    ]
    for row in results["rows"]:
        cells = [f"{row[key]:g}" for key in keys] + [f"{row[name]:.2f}" for name in figures]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
