"""Whitening that makes float descriptors comparable without a model, for hand-made matching (`retrieval.maxsim`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ames_jax.descriptors import DescriptorSet


@dataclass(frozen=True)
class Whitening:
    """x → (x − mean) @ matrix; mean float32 [D], matrix float32 [D, d]."""

    mean: np.ndarray
    matrix: np.ndarray

    @staticmethod
    def fit(features: np.ndarray, width: int | None = None) -> Whitening:
        """PCA whitening to `width` dimensions (default: all) of `features` [N, D], statistics of a training set.

        Directions with less than 1e-6 of the largest variance carry no signal; they are left at zero.
        """
        features = np.asarray(features, np.float32)
        mean = features.mean(axis=0)
        covariance = np.cov(features, rowvar=False, dtype=np.float64)
        variance, directions = np.linalg.eigh(covariance)
        variance, directions = variance[::-1][:width], directions[:, ::-1][:, :width]
        gain = np.where(variance > 1e-6 * variance[0], 1 / np.sqrt(np.maximum(variance, 1e-30)), 0)
        return Whitening(mean, (directions * gain).astype(np.float32))


def prepare(descriptors: DescriptorSet, whitening: Whitening | None = None) -> DescriptorSet:
    """Float descriptors whitened (if asked) and L2-normalised, float32; packed bits as they are."""
    if descriptors.is_packed:
        return descriptors
    features = np.asarray(descriptors.features, np.float32)
    if whitening is not None:
        # One flat product: NumPy runs a product with leading axes as many small ones.
        flat = (features.reshape(-1, features.shape[-1]) - whitening.mean) @ whitening.matrix
        features = flat.reshape(*features.shape[:-1], -1)
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return replace(descriptors, features=features / np.maximum(norm, 1e-12))
