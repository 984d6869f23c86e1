"""The hand-made opponent: a thresholded match kernel on the very descriptors that the model reads.

The score of a pair is the sum over the query's descriptors of max(0, best similarity in the database image − t).
Similarity is the cosine of (whitened) float descriptors, or 1 − 2·h/bits of packed bits at Hamming distance h, which is
the cosine of their ±1 vectors. The threshold t is chosen on validation together with λ and γ (`retrieval.grid`).
In NumPy; `kernel_term` is the kernel in JAX, as a term of a model's logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, UInt8, UInt64

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


def best_similarities(query: DescriptorSet, database: DescriptorSet) -> Float32[np.ndarray, "K Q"]:
    """The best similarity of each query descriptor in each database image, in −1..1.

    query [Q, ·], database [K, T, ·], both from `prepare`, both floats or both packed bits. −1 for a query descriptor
    that is padding and for an image without a valid descriptor, which adds nothing at any threshold.
    """
    if query.is_packed != database.is_packed:
        raise ValueError("the match kernel compares floats with floats, or bits with bits")
    match = _best_by_bits if query.is_packed else _best_by_cosine
    best = match(np.asarray(query.features), np.asarray(database.features), database.valid)
    return best if query.valid is None else np.where(np.asarray(query.valid), best, np.float32(-1))


def kernel_scores(
    query: DescriptorSet, database: DescriptorSet, thresholds: Sequence[float]
) -> Float32[np.ndarray, "K F"]:
    """Scores of a query [Q, ·] against images [K, T, ·], both from `prepare`, for F thresholds; 0 for an empty query.

    The similarities are computed once for all thresholds.
    """
    best = best_similarities(query, database)
    return np.stack([np.maximum(best - np.float32(threshold), 0).sum(axis=1) for threshold in thresholds], axis=1)


def _best_by_cosine(
    query: Float32[np.ndarray, "Q D"], database: Float32[np.ndarray, "K T D"], valid: Bool[AnyArray, "K T"] | None
) -> Float32[np.ndarray, "K Q"]:
    images, per_image, width = database.shape
    similarity = (database.reshape(-1, width) @ query.T).reshape(images, per_image, len(query))
    if valid is not None:
        similarity[~np.asarray(valid)] = -1
    return similarity.max(axis=1, initial=-1)


def _best_by_bits(
    query: UInt8[np.ndarray, "Q bytes"], database: UInt8[np.ndarray, "K T bytes"], valid: Bool[AnyArray, "K T"] | None
) -> Float32[np.ndarray, "K Q"]:
    bits = 8 * query.shape[-1]
    query_words, database_words = _words(query), _words(database)
    distance = np.zeros((len(query), *database.shape[:2]), np.uint16 if bits > 255 else np.uint8)
    for word in range(query_words.shape[-1]):
        distance += np.bitwise_count(query_words[:, None, None, word] ^ database_words[None, ..., word])
    if valid is not None:
        distance[:, ~np.asarray(valid)] = bits
    nearest = distance.min(axis=2, initial=bits).T.astype(np.float32)
    return 1 - nearest * np.float32(2 / bits)


def _words(packed: UInt8[np.ndarray, "*batch bytes"]) -> UInt64[np.ndarray, "*batch words"]:
    """The bytes in words; zeros fill the last word on both sides and so add no distance."""
    missing = -packed.shape[-1] % 8
    padded = np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, missing)]) if missing else np.ascontiguousarray(packed)
    return padded.view(np.uint64)


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
