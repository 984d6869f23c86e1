"""Re-ranking: joins global similarity and logit, reorders the shortlist, searches λ, γ and k. NumPy only.

Columns are those of the first stage's list: column j of `similarities`, `logits` and `ranks` is about the same
database image, best first. A pair's logit depends on the pair alone, so one matrix of logits serves every setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ames_jax.runtime.errors import UserError

Measure = Callable[[np.ndarray], Mapping[str, float]]


@dataclass(frozen=True)
class Setting:
    """What a re-ranking depends on beside the scores: the first k images, λ, γ, and the threshold of a match kernel."""

    k: int
    lam: float
    gamma: float
    threshold: float | None = None


@dataclass(frozen=True)
class SweepRow:
    """One setting and its figures by name, as the `measure` of the sweep returned them."""

    setting: Setting
    scores: Mapping[str, float]


def ensemble(similarity: np.ndarray, logits: np.ndarray, lam: float, gamma: float) -> np.ndarray:
    """λ · global similarity + (1 − λ) · sigmoid(γ · logit), elementwise, float64 so that large logits do not tie.

    Raises UserError for λ outside 0..1 or negative γ.
    """
    if not 0 <= lam <= 1:
        raise UserError(f"lam={lam:g}: the weight of the global similarity must lie in 0..1")
    if not gamma >= 0:
        raise UserError(f"gamma={gamma:g}: the scale of the logits must not be negative")
    with np.errstate(over="ignore"):  # exp overflows to infinity where the sigmoid is 0
        local = 1 / (1 + np.exp(-gamma * logits.astype(np.float64)))
    return lam * similarity.astype(np.float64) + (1 - lam) * local


def shortlist_columns(width: int, queries: int, k: int, junk: np.ndarray | None = None) -> np.ndarray:
    """The head of each list with junk moved behind the rest: int64 [Nq, H], a permutation of the first H columns a row.

    The first k entries of a row are the shortlist. junk: bool [Nq, C], True for junk, or None; columns from C on are
    none. H = k + the most junk of any query (at most `width`): what stands behind keeps its place.
    Raises UserError when the lists hold fewer than k images.
    """
    if not 1 <= k <= width:
        raise UserError(f"rerank={k}: the first stage lists {width} images a query; ask for 1..{width} of them")
    if junk is None or not junk.any():
        return np.tile(np.arange(k), (queries, 1))
    head = min(width, k + int(junk.sum(axis=1).max()))
    junk_head = np.zeros((queries, head), bool)
    junk_head[:, : junk.shape[1]] = junk[:, :head]
    return np.argsort(junk_head, axis=1, kind="stable")


def reranked_order(
    similarities: np.ndarray, logits: np.ndarray, setting: Setting, junk: np.ndarray | None = None
) -> np.ndarray:
    """The new order of the head of each list: int64 [Nq, H]; new column j is old column `order[:, j]`.

    similarities float [Nq, R], logits float [Nq, C] (C columns have scores, NaN where a pair has none), junk bool
    [Nq, ·] or None. Junk goes behind the rest before the first k are cut; those are sorted by `ensemble`, falling,
    equal ones in their old order; the rest keeps its order below. Junk that k still reaches stays last, scored or not.
    Raises UserError when an image of the shortlist has no score.
    """
    head = shortlist_columns(similarities.shape[1], len(similarities), setting.k, junk)
    return _sorted_head(head, _Shortlist.cut(head, similarities, logits, setting.k, junk), setting)


def rerank(
    ranks: np.ndarray, similarities: np.ndarray, logits: np.ndarray, setting: Setting, junk: np.ndarray | None = None
) -> np.ndarray:
    """The re-ranked lists, same shape and type as `ranks` (int [Nq, R]); see `reranked_order`."""
    order = reranked_order(similarities, logits, setting, junk)
    new = ranks.copy()
    new[:, : order.shape[1]] = np.take_along_axis(ranks, order, axis=1)
    return new


def sweep(
    similarities: np.ndarray,
    logits: np.ndarray | Mapping[float, np.ndarray],
    measure: Measure,
    *,
    k: Sequence[int],
    lam: Sequence[float],
    gamma: Sequence[float],
    junk: np.ndarray | None = None,
) -> list[SweepRow]:
    """Measures every combination of k, λ and γ (and thresholds, the keys of `logits` where it is a mapping).

    `measure(order)` receives the order of `reranked_order` and returns figures by name; `metrics.measure_order` makes
    one that passes over the long rankings only once. Rows come in the order threshold, k, λ, γ.
    """
    families = logits if isinstance(logits, Mapping) else {None: logits}
    rows = []
    for (threshold, scores), count in itertools.product(families.items(), k):
        head = shortlist_columns(similarities.shape[1], len(similarities), count, junk)
        shortlist = _Shortlist.cut(head, similarities, scores, count, junk)
        for one_lam, one_gamma in itertools.product(lam, gamma):
            setting = Setting(count, one_lam, one_gamma, threshold)
            rows.append(SweepRow(setting, dict(measure(_sorted_head(head, shortlist, setting)))))
    return rows


def best_row(rows: Sequence[SweepRow], key: str | None = None) -> SweepRow:
    """The row with the highest figure `key` (default: the first one measured); of equal rows the first."""
    key = next(iter(rows[0].scores)) if key is None else key
    return max(rows, key=lambda row: row.scores[key])


def tune(
    similarities: np.ndarray,
    logits: np.ndarray | Mapping[float, np.ndarray],
    measure: Measure,
    *,
    k: Sequence[int],
    lam: Sequence[float],
    gamma: Sequence[float],
    junk: np.ndarray | None = None,
    key: str | None = None,
) -> tuple[Setting, list[SweepRow]]:
    """`sweep`, and the setting of its best row: (setting, rows). Tune on validation, apply the setting elsewhere."""
    rows = sweep(similarities, logits, measure, k=k, lam=lam, gamma=gamma, junk=junk)
    return best_row(rows, key).setting, rows


@dataclass(frozen=True)
class _Shortlist:
    """The first k columns of the head: their similarities and logits, and which of them are junk; all [Nq, k]."""

    similarities: np.ndarray
    logits: np.ndarray
    junk: np.ndarray

    @staticmethod
    def cut(
        head: np.ndarray, similarities: np.ndarray, logits: np.ndarray, k: int, junk: np.ndarray | None
    ) -> _Shortlist:
        columns = head[:, :k]
        is_junk = _take(junk, columns, fill=False) if junk is not None else np.zeros(columns.shape, bool)
        scores = _take(logits, columns, fill=np.nan)
        missing = np.isnan(scores) & ~is_junk
        if missing.any():
            raise UserError(
                f"rerank={k}: {int(missing.sum())} pairs of the shortlist have no score "
                f"(first: query {int(np.argwhere(missing)[0][0])}); score at least {k} images a query"
            )
        return _Shortlist(np.take_along_axis(similarities, columns, axis=1), np.where(is_junk, 0, scores), is_junk)


def _sorted_head(head: np.ndarray, shortlist: _Shortlist, setting: Setting) -> np.ndarray:
    scores = ensemble(shortlist.similarities, shortlist.logits, setting.lam, setting.gamma)
    by_score = np.argsort(np.where(shortlist.junk, np.inf, -scores), axis=1, kind="stable")
    top = np.take_along_axis(head[:, : setting.k], by_score, axis=1)
    return np.concatenate([top, head[:, setting.k :]], axis=1)


def _take(values: np.ndarray, columns: np.ndarray, fill: float | bool) -> np.ndarray:
    """`values[:, columns]` a row; `fill` for columns that `values` does not have."""
    inside = columns < values.shape[1]
    return np.where(inside, np.take_along_axis(values, np.where(inside, columns, 0), axis=1), fill)
