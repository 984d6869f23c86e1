"""Tables for people (Markdown) and programs (plain values): of a comparison, of one model's results with notes, of any rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ames_jax.data.release_hdf5 import MASK, WEIGHT, ReleaseSource
from ames_jax.data.shards import origin_of
from ames_jax.report.comparison import KILOBYTE, Comparison, Row, format_bytes
from ames_jax.retrieval.logits_file import PairLogits
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import SweepRow

# First stages that the released λ and γ suit: the global descriptors of the release's backbones.
RELEASED_FIRST_STAGES = ("dinov2", "cvnet", "superglobal")
COLUMNS = 1000  # of lists whose order is looked at
LOOKED_AT = 32  # images, and descriptors of each, whose statistics are compared
LENGTH_TOLERANCE = 1e-2


def markdown_table(comparison: Comparison) -> str:
    """A heading with data set, first stage and ceiling; one row per matcher, one column per number of descriptors.

    A cell holds the metric in percent (± standard deviation over seeds) and the bytes stored per database image; cells
    within 1 KB are bold.
    """
    counts = comparison.counts
    base = f"{_figure(comparison.global_only)} · 0 B"
    lines = [
        ["re-ranked by", "query desc.", *(f"{count} db desc." for count in counts)],
        ["---", *["---:"] * (len(counts) + 1)],
        ["nothing (global only)", "–", *[base] * len(counts)],
        *([row.name, str(row.query_descriptors), *(_cell(row, count) for count in counts)] for row in comparison.rows),
    ]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*_heading(comparison), "", *table, ""])


def table_rows(comparison: Comparison) -> list[dict]:
    """The same as plain values, for `results.json`: one dict per matcher and number of descriptors.

    Keys: method, kind, query_descriptors, database_descriptors, bytes_per_image, within_1_kb, mean and spread (percent,
    spread None for one seed), scores (one per seed). Global only comes first, with 0 descriptors.
    """
    base = Row("global only", "global", 0, {0: 0}, {0: comparison.global_only})
    return [
        {
            "method": row.name,
            "kind": row.kind,
            "query_descriptors": row.query_descriptors,
            "database_descriptors": count,
            "bytes_per_image": row.stored_bytes[count],
            "within_1_kb": row.stored_bytes[count] <= KILOBYTE,
            "mean": row.mean(count),
            "spread": row.spread(count),
            "scores": [float(score) for score in row.scores[count]],
        }
        for row in (base, *comparison.rows)
        for count in sorted(row.scores)
    ]


def markdown(rows: Sequence[Mapping[str, Any]], headings: Mapping[str, str]) -> str:
    """A table of the keys of `headings` in their order; keys that every row lacks (absent or None) get no column."""
    keys = [key for key in headings if any(row.get(key) is not None for row in rows)]
    cells = [[headings[key] for key in keys], *([_text(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    text = [[isinstance(row.get(key), str) for row in rows] for key in keys]
    pad = [str.ljust if any(column) else str.rjust for column in text]
    lines = ["| " + " | ".join(p(c, w) for p, c, w in zip(pad, line, widths)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if p is str.ljust else ":") for p, w in zip(pad, widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


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
    """A line for every sign that a model was not trained on such descriptors: in the release's files, where pictures of the
    gallery were cropped (that queries are is the rule of several benchmarks), and where the lists are in no order."""
    boxes = origin_of(data.database).get("boxes")
    notes = [f"note: of {boxes} pictures of the gallery a part alone was extracted"] if boxes else []
    if (np.diff(data.similarities[:, :COLUMNS], axis=1) > 0).any():
        notes.append(f"note: the lists of {data.first_stage} are not sorted by falling similarity: make them again")
    if (np.diff(np.sort(data.ranks[:, :COLUMNS], axis=1), axis=1) == 0).any():
        notes.append(f"note: the lists of {data.first_stage} name an image twice for one query: make them again")
    for side, reader in (("queries", data.queries), ("database", data.database)):
        if not isinstance(reader, ReleaseSource) or reader.layout == "plain":
            continue
        metadata, features = reader.read_raw(slice(0, LOOKED_AT), LOOKED_AT)
        real, weight = metadata[..., MASK] == 0, metadata[..., WEIGHT]
        lengths = np.linalg.norm(features[real].astype(np.float32), axis=-1)
        if real[:, 0].mean() < 0.5:
            notes.append(
                f"note: most images of {reader.path.name} ({side}) begin with padding: 1 of the mask must mark it"
            )
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


def _heading(comparison: Comparison) -> list[str]:
    ceiling = "" if comparison.ceiling is None else f"; its ceiling (recall) is {comparison.ceiling:.1f} %"
    seeds = max([len(comparison.global_only), *(len(s) for row in comparison.rows for s in row.scores.values())])
    spread = f" ± is the standard deviation over {seeds} seeds." if seeds > 1 else ""
    return [
        f"### {comparison.data_set}: {comparison.metric} (%)",
        "",
        f"First stage: {comparison.first_stage}. Re-ranked: its first {comparison.shortlist} images per query{ceiling}.",
        f"Beside each figure: bytes of local descriptors per database image; **bold**: within 1 KB.{spread}",
    ]


def _cell(row: Row, count: int) -> str:
    if count not in row.scores:
        return "–"
    text = f"{_figure(row.scores[count])} · {format_bytes(row.stored_bytes[count])}"
    return f"**{text}**" if row.stored_bytes[count] <= KILOBYTE else text


def _figure(scores: Sequence[float]) -> str:
    mean = f"{np.mean(scores):.1f}"
    return f"{mean} ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else mean


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}" if abs(value) >= 1e-3 else f"{value:.1e}"
