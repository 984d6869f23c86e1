"""Forms of hand-made matching against their definitions; padding and the order of descriptors change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.packing import BitPacker
from ames_jax.retrieval.grid import KERNEL_THRESHOLDS
from ames_jax.retrieval.hand_made import MaxSimMatcher, Whitening

WIDTH, BITS = 12, 16


@pytest.fixture(scope="module")
def packer() -> BitPacker:
    config = AMESConfig(descriptor_width=WIDTH, bits=BITS, model_width=8, heads=1, layers=1, feed_forward=8)
    return BitPacker(AMES(config, nnx.Rngs(0)))


def sets(seed: int) -> tuple[DescriptorSet, DescriptorSet]:
    rng = np.random.default_rng(seed)
    query = DescriptorSet(rng.standard_normal((5, WIDTH)).astype(np.float32), rng.random(5) < 0.8)
    database = DescriptorSet(rng.standard_normal((40, 6, WIDTH)).astype(np.float32), rng.random((40, 6)) < 0.7)
    return query, database


def plain(similarity: np.ndarray, form: str, threshold: float) -> float:
    """Of the similarities [q, t] of real descriptors alone."""
    if not similarity.size:
        return 0.0
    rows, columns = similarity.max(1), similarity.max(0)
    if form == "query":
        return np.maximum(rows - threshold, 0).sum()
    if form == "both":
        return (np.maximum(rows - threshold, 0).sum() + np.maximum(columns - threshold, 0).sum()) / 2
    mutual = [s for i, j in np.ndindex(similarity.shape) if (s := similarity[i, j]) == rows[i] == columns[j]]
    return sum(max(s - threshold, 0) for s in mutual)


@pytest.mark.parametrize("kind", ["bits", "floats", "whitened"])
def test_scores_equal_the_definitions(packer: BitPacker, kind: str) -> None:
    query, database = sets(0)
    if kind == "whitened":
        whitening = Whitening.fit(np.random.default_rng(1).standard_normal((300, WIDTH)))
        matcher = MaxSimMatcher("floats", whitening=whitening)
        left, right = ((side.features - whitening.mean) @ whitening.matrix for side in (query, database))
    else:
        matcher = MaxSimMatcher("bits", packer=packer, queries=[kind])
        signs = [
            np.unpackbits(packer.pack(side).features, axis=-1) * 2.0 - 1 for side in (query_as_images(query), database)
        ]
        left, right = (packer.directions(query.features) if kind == "floats" else signs[0][0]), signs[1]
    left, right = (side / np.linalg.norm(side, axis=-1, keepdims=True) for side in (left, right))
    found = matcher.shortlist(query, matcher.stored(database))
    expected = [
        [
            plain(left[query.valid] @ image[valid].T, form, t)
            for form in ("query", "both", "mutual")
            for t in KERNEL_THRESHOLDS
        ]
        for image, valid in zip(right.astype(np.float32), database.valid)
    ]
    if kind != "bits":  # equal similarities of bits are several pairs here, and one there
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found[:, :14], np.array(expected)[:, :14], atol=1e-5)
    assert found.shape == (40, len(matcher.thresholds))


def query_as_images(query: DescriptorSet) -> DescriptorSet:
    return DescriptorSet(query.features[None], query.valid[None])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), more=st.integers(0, 3))
def test_padding_and_order_change_nothing(packer: BitPacker, seed: int, more: int) -> None:
    query, database = sets(seed)
    matcher = MaxSimMatcher("bits", packer=packer, queries=["floats"])
    expected = matcher.shortlist(query, matcher.stored(database))
    order = np.random.default_rng(seed).permutation(6)
    turned = DescriptorSet(database.features[:, order], database.valid[:, order])
    found = matcher.shortlist(query.pad(5 + more), matcher.stored(turned.pad(6 + more)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_whitening_decorrelates():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + 3
    whitening = Whitening.fit(sample)
    white = (sample - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(6), atol=1e-3)


def test_whitening_leaves_empty_directions_at_zero():
    rng = np.random.default_rng(0)
    whitening = Whitening.fit(rng.normal(size=(500, 3)) @ rng.normal(size=(3, 5)))
    assert np.isfinite(whitening.matrix).all()
    assert (np.abs(whitening.matrix[:, 3:]) == 0).all()
