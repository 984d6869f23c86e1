"""Conversion of release checkpoints under its public path; see `ames_jax.model.torch_weights`."""

from ames_jax.model.torch_weights import from_torch, infer_config, to_torch

__all__ = ["from_torch", "infer_config", "to_torch"]
