"""VLAD (Jégou et al., CVPR 2010, with the power law of 2012): a global descriptor from local ones.

In two kinds: normalised per centre, and of residuals of length 1 in local axes (Delhumeau et al., "Revisiting the VLAD
image representation", ACM MM 2013), which finds more of real photographs.
"""

from __future__ import annotations

import warnings

import numpy as np
from etils import epy
from jaxtyping import Bool, Float, Float32, Int

with epy.lazy_imports():  # a quarter of the start of every command, for statistics that most only read
    from scipy.cluster import vq

KMEANS_STEPS = 15


def learn_centres(features: Float[np.ndarray, "N D"], count: int, seed: int) -> Float32[np.ndarray, "{count} D"]:
    """k-means centres of features; deterministic in (features, seed).

    Runs in float64, so that the last bits of a machine's arithmetic do not decide which centre a point joins.
    """
    points = features.astype(np.float64)
    start = points[np.random.default_rng(seed).choice(len(points), count, replace=False)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")  # it keeps its centre
        return vq.kmeans2(points, start, KMEANS_STEPS, minit="matrix")[0].astype(np.float32)


def vlad(
    features: Float[np.ndarray, "*batch N D"],
    valid: Bool[np.ndarray, "*batch N"],
    centres: Float32[np.ndarray, "C D"],
    axes: Float32[np.ndarray, "C D D"] | None = None,
) -> Float32[np.ndarray, "*batch C*D"]:
    """Sums of residuals to the nearest centre, square-rooted, then L2-normalised.

    Without axes, each centre's sum is normalised first. With them, each residual is, and sums are turned into the axes of
    their centre (`learn_axes`). The result has length 1, or is zero where nothing is valid.
    """
    nearest = _nearest(features, centres)
    member = ((np.arange(len(centres))[:, None] == nearest[..., None, :]) & valid[..., None, :]).astype(np.float32)
    if axes is None:
        sums = normalised(member @ features - member.sum(-1)[..., None] * centres)
    else:
        sums = np.einsum("...cd,cde->...ce", member @ normalised(features - centres[nearest]), axes)
    flat = sums.reshape(*sums.shape[:-2], -1)
    return normalised(np.sign(flat) * np.sqrt(np.abs(flat)))


def learn_axes(features: Float[np.ndarray, "N D"], centres: Float32[np.ndarray, "C D"]) -> Float32[np.ndarray, "C D D"]:
    """In its columns, the principal axes of the residuals of length 1 to each centre.

    A centre with at most D features keeps the coordinate axes.
    """
    nearest, width = _nearest(features, centres), features.shape[-1]
    axes = np.tile(np.eye(width, dtype=np.float32), (len(centres), 1, 1))
    for i, centre in enumerate(centres):
        residuals = normalised(features[nearest == i] - centre)
        if len(residuals) > width:
            axes[i] = np.linalg.eigh(np.cov(residuals, rowvar=False, dtype=np.float64))[1]
    return axes


def normalised(values: np.ndarray) -> np.ndarray:
    """L2-normalises the last axis; rows of zeros stay zeros."""
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-9)


def _nearest(points: Float[np.ndarray, "*N D"], centres: Float[np.ndarray, "C D"]) -> Int[np.ndarray, "*N"]:
    flat = points.reshape(-1, points.shape[-1])  # one matrix product instead of one per image
    nearest = (flat @ centres.T - 0.5 * (centres * centres).sum(1)).argmax(-1)
    return nearest.reshape(points.shape[:-1])
