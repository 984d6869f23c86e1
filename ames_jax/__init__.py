"""AMES: asymmetric and memory-efficient similarity for instance-level image retrieval, in JAX and Flax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ames_jax.descriptors import DescriptorSet
    from ames_jax.index.reranking import rerank
    from ames_jax.index.searcher import Searcher
    from ames_jax.model_files import load_model
    from ames_jax.scoring import Scorer, score_pairs, score_shortlist
    from ames_jax.similarity import AMES, AMESConfig

__all__ = [
    "AMES", "AMESConfig", "DescriptorSet", "Scorer", "Searcher", "load_model", "rerank", "score_pairs", "score_shortlist",
]  # fmt: skip

_HOME = {
    "AMES": "similarity", "AMESConfig": "similarity", "DescriptorSet": "descriptors", "Scorer": "scoring",
    "Searcher": "index.searcher", "load_model": "model_files", "rerank": "index.reranking", "score_pairs": "scoring",
    "score_shortlist": "scoring",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: worker processes that only render or read need no JAX."""
    if name not in _HOME:
        raise AttributeError(f"module 'ames_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ames_jax.{_HOME[name]}"), name)
