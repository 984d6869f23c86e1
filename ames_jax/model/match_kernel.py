"""Hand-made matching as a part of a model, and the whitening that makes float descriptors comparable without one.

The match kernel of a pair is the sum over the query's descriptors of max(0, best similarity in the database image − t), of the
cosine of the ±1 vectors of their bits. As a method of its own, in all its forms: `retrieval.maxsim`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from ames_jax.descriptors import AnyArray, DescriptorSet


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


def kernel_term(
    query: Float[Array, "*B Q bits"],
    database: Float[Array, "K T bits"],
    query_valid: Bool[AnyArray, "*B Q"] | None,
    database_valid: Bool[AnyArray, "K T"] | None,
    threshold: float,
) -> Float32[Array, " K"]:
    """The kernel in the model: sum over the query's descriptors of max(0, best cosine in the image − threshold).

    query and database hold ±1; the query's B is K, or left out for one query against all images. An image without a
    valid descriptor adds nothing.
    """
    best = jnp.einsum("qc,btc->bqt" if query.ndim == 2 else "bqc,btc->bqt", query, database) / query.shape[-1]
    if database_valid is not None:
        best = jnp.where(database_valid[:, None], best, -1)
    above = jnp.maximum(best.max(-1) - threshold, 0)
    if query_valid is not None:
        above = jnp.where(jnp.broadcast_to(query_valid, above.shape), above, 0)
    return above.sum(-1).astype(jnp.float32)
