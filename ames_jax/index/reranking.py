"""Re-ranking of one query's shortlist from stored bits, whatever search found the shortlist."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ames_jax.descriptors import DescriptorSet, as_array
from ames_jax.index.queries import count_of
from ames_jax.index.shortlist_scoring import Hit, ranked
from ames_jax.model.kinds import Model
from ames_jax.retrieval.scorer import Scorer
from ames_jax.retrieval.sets import LARGEST_SIMILARITY
from ames_jax.runtime.errors import UserError

MOST = 1 << 16  # more descriptors than any store holds of an image


class StoredImages(Protocol):
    """A packed store or a search index."""

    path: Path

    @property
    def binarizer(self) -> str: ...

    @property
    def setting(self) -> tuple[float, float] | None: ...

    def rows(self, ids: Sequence[str]) -> np.ndarray: ...

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet: ...


def rerank(
    model: Model | Scorer,
    query: DescriptorSet,
    store: StoredImages,
    ids: Sequence[str],
    global_similarities: Sequence[Any] | np.ndarray,
    *,
    lam: float | None = None,
    gamma: float | None = None,
    descriptors: int | None = None,
) -> list[Hit]:
    """The shortlist of any first stage, such as a vector database, re-ranked: best first.

    Args:
      model: the binary model that made the store's bits; a `Scorer` of it saves work when called often.
      query: local descriptors [Q, ·] of the query: floats or packed bits, strongest first.
      store: a packed store (`open_store`) or a search index (`SearchIndex.open`).
      ids: the shortlist, best first; global_similarities: its similarities [K].
      lam, gamma: λ and γ of the ensemble. None: the `setting` of the store or index.
      descriptors: T, the most descriptors of a stored image that are used; None: all that are stored.

    Raises:
      UserError: an id that the store does not hold, bits of another model, descriptors that do not fit the model, λ or γ
        missing where the store knows none.
    """
    if len(ids) != len(global_similarities):
        raise UserError(f"{len(ids)} ids with {len(global_similarities)} global similarities: give one for each")
    count = MOST if descriptors is None else count_of(descriptors, "descriptors")
    lam, gamma = setting_of(store, lam, gamma)
    similarities = as_array(global_similarities, "global_similarities").astype(np.float32)
    if similarities.shape != (len(ids),):
        raise UserError(f"global_similarities have shape {list(similarities.shape)}, expected [{len(ids)}]")
    wrong = ~(np.abs(similarities) <= LARGEST_SIMILARITY)  # NaN is neither
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise UserError(
            f"the global similarity of {ids[bad]!r} is {similarities[bad]}, expected −1 to 1: inner products of vectors of "
            "length 1"
        )
    scorer = _checked_scorer(model, store)
    rows = store.rows(ids)
    if not len(rows):
        return []
    logits = scorer.shortlist(query, store.read(rows, count))
    return ranked(ids, rows, similarities, logits, lam, gamma)


def setting_of(store: StoredImages, lam: Any, gamma: Any) -> tuple[float, float]:
    """λ and γ: the given ones, else those of the store; raises UserError where it knows none."""
    known_lam, known_gamma = store.setting or (None, None)
    lam, gamma = known_lam if lam is None else lam, known_gamma if gamma is None else gamma
    if lam is None or gamma is None:
        raise UserError(
            f"{store.path} does not say with which λ and γ its model's scores join the global ones: give lam and gamma, "
            "as python -m ames_jax.evaluate chooses them for the model"
        )
    check_setting(lam, gamma, str(store.path))
    return lam, gamma


def check_setting(lam: Any, gamma: Any, name: str) -> None:
    """Raises UserError unless λ is a number in 0..1 and γ a finite one from 0 on."""
    if not (isinstance(lam, int | float | np.number) and 0 <= lam <= 1):
        raise UserError(f"{name}: λ (lam) is {lam}, expected a number in 0..1")
    if not (isinstance(gamma, int | float | np.number) and 0 <= gamma < math.inf):
        raise UserError(f"{name}: γ (gamma) is {gamma}, expected a number from 0 on")


def _checked_scorer(model: Model | Scorer, store: StoredImages) -> Scorer:
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    if scorer.config.bits is None:
        raise UserError(
            f"{store.path} holds bits, which a full-precision model cannot read: give the binary model of them"
        )
    if store.binarizer != scorer.binarizer:
        raise UserError(f"{store.path}: its bits were made by another model than the one given")
    return scorer
