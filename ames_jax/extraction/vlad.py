"""VLAD (Jégou et al., CVPR 2010, with the power law of 2012): a global descriptor from local ones."""

from __future__ import annotations

import numpy as np

KMEANS_STEPS = 15


def learn_centres(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means centres, float32 [count, D], of features [N, D]; deterministic in (features, seed).

    Runs in float64, so that the last bits of a machine's arithmetic do not decide which centre a point joins.
    """
    points = features.astype(np.float64)
    rng = np.random.default_rng(seed)
    centres = points[rng.choice(len(points), count, replace=False)]
    for _ in range(KMEANS_STEPS):
        nearest = _nearest(points, centres)
        for i in range(count):
            members = points[nearest == i]
            if len(members):
                centres[i] = members.mean(0)
    return centres.astype(np.float32)


def vlad(features: np.ndarray, valid: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Sums of residuals to the nearest centre, normalised per centre, square-rooted, then L2-normalised.

    Args:
      features: float32 [..., N, D].
      valid: bool [..., N].
      centres: float32 [C, D].

    Returns:
      float32 [..., C · D] of length 1 (zeros where nothing is valid).
    """
    member = (_nearest(features, centres)[..., None] == np.arange(len(centres))) & valid[..., None]
    member = member.astype(np.float32)
    residuals = np.swapaxes(member, -1, -2) @ features - member.sum(-2)[..., None] * centres
    flat = normalised(residuals).reshape(*residuals.shape[:-2], -1)
    return normalised(np.sign(flat) * np.sqrt(np.abs(flat)))


def normalised(values: np.ndarray) -> np.ndarray:
    """L2-normalises the last axis; rows of zeros stay zeros."""
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-9)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    flat = points.reshape(-1, points.shape[-1])  # one matrix product instead of one an image
    nearest = (flat @ centres.T - 0.5 * (centres * centres).sum(1)).argmax(-1)
    return nearest.reshape(points.shape[:-1])
