"""AMES: asymmetric and memory-efficient similarity for instance-level image retrieval, in JAX and Flax."""

from etils import epy

# Public names are imported on first use: worker processes that only render or read need no JAX.
with epy.lazy_api_imports(globals()):
    from ames_jax.descriptors import DescriptorSet
    from ames_jax.index.comparing import compare
    from ames_jax.index.reranking import rerank
    from ames_jax.index.searcher import Searcher
    from ames_jax.model.ames import AMES, AMESConfig
    from ames_jax.model.released import load_model
    from ames_jax.retrieval.scorer import Scorer, score_pairs, score_shortlist

__all__ = [
    "AMES",
    "AMESConfig",
    "DescriptorSet",
    "Scorer",
    "Searcher",
    "compare",
    "load_model",
    "rerank",
    "score_pairs",
    "score_shortlist",
]
__version__ = "0.2.0"
