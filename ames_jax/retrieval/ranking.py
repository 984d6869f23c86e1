"""Re-ranking: joins global similarity and score, reorders the shortlist. NumPy only.

Columns are those of the first stage's list: column j of `similarities`, `scores` and `ranks` is about the same database
image, best first. A pair's score depends on the pair alone, so one matrix of scores serves every setting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

from ames_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Setting:
    """Settings of a re-ranking: the first k images, λ, γ, and the threshold, or form and threshold, of hand-made matching."""

    k: int
    lam: float
    gamma: float
    threshold: float | str | None = None


def ensemble(
    similarity: Float[np.ndarray, "*shape"], scores: Float[np.ndarray, "*shape"], lam: float, gamma: float
) -> Float64[np.ndarray, "*shape"]:
    """λ · global similarity + (1 − λ) · sigmoid(γ · score), elementwise, float64 so that large scores do not tie.

    Raises UserError for λ outside 0..1 or negative γ.
    """
    if not 0 <= lam <= 1:
        raise UserError(f"lam={lam:g}: the weight of the global similarity must lie in 0..1")
    if not 0 <= gamma < np.inf:
        raise UserError(f"gamma={gamma:g}: the scale of the scores must be a finite number from 0 on")
    with np.errstate(over="ignore"):  # exp overflows to infinity where the sigmoid is 0
        local = 1 / (1 + np.exp(-gamma * scores.astype(np.float64)))
    return lam * similarity.astype(np.float64) + (1 - lam) * local


def shortlist_columns(
    width: int, queries: int, k: int, junk: Bool[np.ndarray, "Nq C"] | None = None
) -> Int[np.ndarray, "queries H"]:
    """The head of each list with junk moved behind the rest, row by row a permutation of the first H columns.

    The first k entries of a row are the shortlist. Columns from C on are not junk. H = k + the most junk of any query (at
    most `width`): what stands behind keeps its place.
    Raises UserError when the lists hold fewer than k images.
    """
    if not 1 <= k <= width:
        raise UserError(f"rerank={k}: the first stage lists {width} images per query; ask for 1..{width} of them")
    if junk is None or not junk.any():
        return np.tile(np.arange(k), (queries, 1))
    head = min(width, k + int(junk.sum(axis=1).max()))
    junk_head = np.zeros((queries, head), bool)
    junk_head[:, : junk.shape[1]] = junk[:, :head]
    return np.argsort(junk_head, axis=1, kind="stable")


@dataclass(frozen=True)
class Shortlist:
    """The first k images of each list with their scores, ready to be reordered with any λ and γ.

    head: int64 [Nq, H], see `shortlist_columns`. similarities, scores, junk: of its first k columns, [Nq, k].
    """

    head: np.ndarray
    similarities: np.ndarray
    scores: np.ndarray
    junk: np.ndarray

    @staticmethod
    def cut(
        similarities: Float[np.ndarray, "Nq R"],
        scores: Float[np.ndarray, "Nq C"],
        k: int,
        junk: Bool[np.ndarray, "Nq J"] | None = None,
    ) -> Shortlist:
        """Junk goes behind the rest before the first k are cut; C columns are scored, NaN where a pair has no score.

        Raises UserError when an image of the shortlist has no score.
        """
        head = shortlist_columns(similarities.shape[1], len(similarities), k, junk)
        columns = head[:, :k]
        is_junk = np.zeros(columns.shape, bool) if junk is None else _take(junk, columns, fill=False)
        found = _take(scores, columns, fill=np.nan)
        missing = np.isnan(found) & ~is_junk
        if missing.any():
            raise UserError(
                f"rerank={k}: {int(missing.sum())} pairs of the shortlist have no score "
                f"(first: query {int(np.argwhere(missing)[0][0])}); score at least {k} images per query"
            )
        return Shortlist(head, np.take_along_axis(similarities, columns, 1), np.where(is_junk, 0, found), is_junk)

    def order(self, lam: float, gamma: float) -> Int[np.ndarray, "Nq H"]:
        """The new order of the head: new column j is old column `order[:, j]`.

        The first k are sorted by `ensemble`, falling, equal ones in their old order; the rest keeps its order below. Junk
        that k still reaches stays last, scored or not.
        """
        values = ensemble(self.similarities, self.scores, lam, gamma)
        by_value = np.argsort(np.where(self.junk, np.inf, -values), axis=1, kind="stable")
        k = self.junk.shape[1]
        return np.concatenate([np.take_along_axis(self.head[:, :k], by_value, axis=1), self.head[:, k:]], axis=1)


def rerank(
    ranks: Int[np.ndarray, "Nq R"],
    similarities: Float[np.ndarray, "Nq R"],
    scores: Float[np.ndarray, "Nq C"],
    setting: Setting,
    junk: Bool[np.ndarray, "Nq J"] | None = None,
) -> Int[np.ndarray, "Nq R"]:
    """The re-ranked lists, of the type of `ranks`; see `Shortlist`."""
    return reordered(ranks, Shortlist.cut(similarities, scores, setting.k, junk).order(setting.lam, setting.gamma))


def reordered(ranks: Int[np.ndarray, "Nq R"], order: Int[np.ndarray, "Nq H"]) -> Int[np.ndarray, "Nq R"]:
    """The lists with the head in a new order; `order` as of `Shortlist.order`."""
    new = ranks.copy()
    new[:, : order.shape[1]] = np.take_along_axis(ranks, order, axis=1)
    return new


def _take(
    values: Shaped[np.ndarray, "Nq C"], columns: Int[np.ndarray, "Nq k"], fill: float | bool
) -> Shaped[np.ndarray, "Nq k"]:
    """`values[:, columns]` row by row; `fill` for columns that `values` does not have."""
    inside = columns < values.shape[1]
    return np.where(inside, np.take_along_axis(values, np.where(inside, columns, 0), axis=1), fill)
