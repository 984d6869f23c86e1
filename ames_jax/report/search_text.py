"""Search results for terminals and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ames_jax.index.collection import SearchIndex
from ames_jax.index.searcher import STAGES, SearchResult
from ames_jax.report.plain_tables import markdown


def result_text(query: Path, result: SearchResult) -> str:
    """The hits of one query as a table."""
    lines = [f"{query}", "place   from   score  global   logit  image"]
    for place, hit in enumerate(result.hits, 1):
        came = str(hit.old_place) if hit.old_place != place else ""
        score = "-" if hit.score is None else f"{hit.score:.4f}"
        logit = "-" if hit.logit is None else f"{hit.logit:.2f}"
        lines.append(f"{place:5}  {came:>5}  {score:>6}  {hit.global_similarity:6.3f}  {logit:>6}  {hit.id}")
    return "\n".join(lines)


def result_facts(query: Path, result: SearchResult, index: SearchIndex) -> dict[str, Any]:
    """The hits of one query as plain JSON."""
    hits = [
        {"place": place, **dataclasses.asdict(hit), "picture": _text(index.picture(hit.row))}
        for place, hit in enumerate(result.hits, 1)
    ]
    return {"query": str(query), "hits": hits, "seconds": result.seconds}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def timing_text(results: Sequence[SearchResult], start: float) -> str:
    """The split of the time, in milliseconds a query, and the seconds of the start."""
    mean = {stage: sum(result.seconds[stage] for result in results) / len(results) for stage in STAGES}
    split = ", ".join(f"{stage} {1e3 * seconds:.1f}" for stage, seconds in mean.items())
    text = f"{1e3 * sum(mean.values()):.1f} ms a query: {split}"
    return f"{text} (start, with opening and compiling: {start:.1f} s)"


def index_text(index: SearchIndex, added: int) -> str:
    """What an index holds and costs."""
    facts = index.facts
    local = facts["descriptors"] * facts["bits"] // 8
    vectors = sum(part["global_bytes"] for part in facts["parts"]) / max(1, facts["images"])
    return (
        f"{index.path}: {facts['images']:,} images ({added:,} new), each {local:,} B of local bits "
        f"({facts['descriptors']} descriptors of {facts['bits'] // 8} B; budget {facts['budget']:,} B), and apart from "
        f"these {vectors:,.0f} B for the global search ({facts['global_index']}, {facts['global_width']} values), "
        f"2 B for the number of descriptors, and the id"
    )


def quality_text(rows: Sequence[dict[str, Any]], shortlist: int, query_descriptors: int, data_set: str) -> str:
    """The table of `quality.measure_quality`."""
    headings = {"method": "method", "descriptors": "stored descriptors", "bytes": "bytes an image", "map": "mAP"}
    title = f"{data_set}, test pictures: first {shortlist} re-ranked, {query_descriptors} query descriptors"
    return f"{title}\n\n{markdown(rows, headings)}"


def speed_text(facts: dict[str, Any]) -> str:
    """What `speed.measure_speed` found."""
    split = ", ".join(f"{stage} {1e3 * seconds:.1f}" for stage, seconds in facts["seconds"].items())
    sizes = ", ".join(f"{label} {size:,.1f}" for label, size in facts["bytes_per_image"].items())
    return (
        f"{facts['images']:,} images, first {facts['shortlist']} re-ranked, {facts['query_descriptors']} query × "
        f"{facts['descriptors']} stored descriptors: {1e3 * facts['total']:.0f} ms a query ({split})\n"
        f"start {facts['start']:.1f} s; bytes an image on disk: {sizes}"
    )
