"""Whitening of descriptors; the kernel itself is tested where it is a method, in `test_maxsim`, and in `test_ames`."""

from __future__ import annotations

import numpy as np

from ames_jax.model.whitening import Whitening

rng = np.random.default_rng(0)


def test_whitening_decorrelates():
    sample = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + 3
    whitening = Whitening.fit(sample)
    white = (sample - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(6), atol=1e-3)
    assert Whitening.fit(sample, 2).matrix.shape == (6, 2)


def test_whitening_leaves_empty_directions_at_zero():
    sample = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 5))
    assert np.isfinite(Whitening.fit(sample).matrix).all()
    assert (np.abs(Whitening.fit(sample).matrix[:, 3:]) == 0).all()
