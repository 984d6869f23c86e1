"""Retrieval protocols: where the right images stand in a ranking, and each benchmark's figure of it. NumPy only.

A *ranking* is an integer array `ranks [Nq, R]`: row i holds database rows, best first, for query i. The *ground truth*
is a list with one mapping per query, from a kind of judgement to database rows: `{"easy", "hard", "junk"}` (ROxford,
RParis) or `{"ok", "junk"}` (everything else).

What is defined here, once, for every protocol:

* A query without a right image is left out of every mean (its entry is NaN). A mean over no query at all is NaN.
* A right image that the ranking does not hold adds nothing. AP is divided by the right images there are, or by the
  length R of the ranking if that is less (so the release does it; with a whole ranking it makes no difference).
* Junk is taken out of the ranking, so what stands below it moves up.
* An image that a ranking repeats counts at its first place; the repeats stand there as wrong images.
* An image listed under two kinds belongs to the first of them (easy, hard, ok, junk); listed twice, it counts once.
* A negative entry of a ranking (the filler of k-NN libraries) is a wrong image.

In two stages, so that a sweep over many re-rankings passes over the long rankings once: `judge` finds the judged
images, `Judged.reordered` moves them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from ames_jax.data.release_pickles import GLDV2_PRIVATE
from ames_jax.retrieval.judgements import GroundTruth, Hits, Judged, find_hits, judge


@dataclass(frozen=True)
class Protocol:
    """One figure of a benchmark.

    `ok` and `junk` name the kinds of judgement that are right and that are taken out. `depth`: only the first places
    count, and AP is divided by min(right images, depth). `trapezoid`: area under the curve by trapezoids (ROxford's
    way), else by rectangles. `part`: its queries, from and to. `hit`: R@depth instead of mAP: the share of queries with
    a right image among the first `depth`.
    """

    name: str
    ok: tuple[str, ...] = ("ok",)
    junk: tuple[str, ...] = ("junk",)
    depth: int | None = None
    trapezoid: bool = False
    part: tuple[int | None, int | None] = (None, None)
    hit: bool = False


REVISITED = (
    Protocol("easy", ("easy",), ("junk", "hard"), trapezoid=True),
    Protocol("medium", ("easy", "hard"), ("junk",), trapezoid=True),
    Protocol("hard", ("hard",), ("junk", "easy"), trapezoid=True),
)


def gldv2_protocols(private: int = GLDV2_PRIVATE) -> tuple[Protocol, ...]:
    """mAP@100 of GLDv2: the last `private` queries, those before them, and all."""
    parts = {"public": (None, -private), "private": (-private, None), "combined": (None, None)}
    return tuple(Protocol(name, depth=100, part=part) for name, part in parts.items())


def average_precision(hits: Hits, depth: int | None = None, trapezoid: bool = False) -> Float64[np.ndarray, " Nq"]:
    """AP of every query in 0..1, NaN without a right image. `depth`, `trapezoid`: see `Protocol`."""
    precision = (hits.before + 1) / (hits.place + 1)
    if trapezoid:
        # The curve starts at precision 1: the release's convention for a first place.
        precision = (precision + np.where(hits.place == 0, 1.0, hits.before / np.maximum(hits.place, 1))) / 2
    if depth is not None:
        precision = np.where(hits.place < depth, precision, 0.0)
    possible = np.minimum(hits.positives, hits.length if depth is None else min(depth, hits.length))
    return hits.sum_by_query(precision) / np.maximum(possible, 1)


def hit_at(hits: Hits, k: int) -> Float64[np.ndarray, " Nq"]:
    """R@k as in metric learning: 1 if a right image stands among the first k places, else 0."""
    return np.minimum(hits.sum_by_query(hits.place < k), 1.0)


def recall_at(hits: Hits, k: int) -> Float64[np.ndarray, " Nq"]:
    """Share of all right images among the first k places: what re-ranking a shortlist can bring up."""
    return hits.sum_by_query(hits.place < k) / np.maximum(hits.positives, 1)


def percent(values: Float64[np.ndarray, " Nq"]) -> float:
    """Mean in percent over the queries that have a right image; NaN if there are none."""
    counted = values[~np.isnan(values)]
    return float(100 * counted.mean()) if counted.size else float("nan")


def protocol_score(judged: Judged, protocol: Protocol) -> float:
    """The figure of one protocol in percent: its mAP, or R@k."""
    return score_of_hits(find_hits(judged, protocol.ok, protocol.junk), protocol)


def score_of_hits(hits: Hits, protocol: Protocol) -> float:
    """As `protocol_score`, of hits that protocols with the same `ok` and `junk` share."""
    each = hit_at(hits, protocol.depth) if protocol.hit else average_precision(hits, protocol.depth, protocol.trapezoid)
    return percent(each[slice(*protocol.part)])


def revisited_map(ranks: Int[np.ndarray, "Nq R"], ground_truth: GroundTruth) -> dict[str, float]:
    """mAP in percent of ROxford5k or RParis6k (with or without +1M): `{"easy", "medium", "hard"}`.

    ground_truth: the list `gnd` of the release's file: `easy`, `hard`, `junk` for each query.
    """
    judged = judge(ranks, ground_truth)
    return {protocol.name: protocol_score(judged, protocol) for protocol in REVISITED}


def gldv2_map(
    ranks: Int[np.ndarray, "Nq R"], ground_truth: GroundTruth, private: int = GLDV2_PRIVATE
) -> dict[str, float]:
    """mAP@100 in percent of GLDv2: `{"public", "private", "combined"}`; the last `private` queries are private.

    R is 100 or more; ground_truth: `ok` for each query (it may be empty).
    """
    judged = judge(np.asarray(ranks)[:, :100], ground_truth)
    return {protocol.name: protocol_score(judged, protocol) for protocol in gldv2_protocols(private)}


def mean_average_precision(
    ranks: Int[np.ndarray, "Nq R"], ground_truth: GroundTruth, depth: int | None = None
) -> float:
    """Rectangular mAP in percent over the whole ranking, or mAP@depth; ground truth: `ok`, `junk` if there is any."""
    return protocol_score(judge(ranks, ground_truth), Protocol("map", depth=depth))
