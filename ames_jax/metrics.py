"""The metrics of the field under their public path; see `ames_jax.retrieval.metrics`."""

from ames_jax.retrieval.metrics import gldv2_map, revisited_map

__all__ = ["gldv2_map", "revisited_map"]
