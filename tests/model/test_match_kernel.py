"""The match kernel against its definition, written out; floats and bits; padding."""

from __future__ import annotations

import numpy as np
import pytest

from ames_jax.descriptors import DescriptorSet, pack_bits
from ames_jax.model.match_kernel import Whitening, best_similarities, kernel_scores, prepare

rng = np.random.default_rng(0)


def random_sets(width: int = 24) -> tuple[DescriptorSet, DescriptorSet, np.ndarray]:
    query_valid, database_valid = rng.random((3, 5)) < 0.8, rng.random((7, 6)) < 0.7
    database_valid[2] = False
    queries = DescriptorSet(rng.normal(size=(3, 5, width)).astype(np.float16), query_valid)
    database = DescriptorSet(rng.normal(size=(7, 6, width)).astype(np.float16), database_valid)
    return queries, database, np.stack([rng.permutation(7)[:4] for _ in range(3)])


def plain_score(query, query_valid, image, image_valid, similarity, threshold):
    total = 0.0
    for descriptor in query[query_valid]:
        best = max((similarity(descriptor, other) for other in image[image_valid]), default=-1.0)
        total += max(0.0, best - threshold)
    return total


def cosine(a, b):
    a, b = a.astype(float), b.astype(float)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def hamming(a, b):
    return 1 - 2 * np.unpackbits(a ^ b).sum() / (8 * len(a))


@pytest.mark.parametrize("bits", [None, 24, 128, 264])
def test_scores_equal_the_definition(bits):
    queries, database, shortlists = random_sets(bits or 24)
    similarity = cosine
    if bits:
        queries = DescriptorSet(pack_bits(queries.features), queries.valid)
        database = DescriptorSet(pack_bits(database.features), database.valid)
        similarity = hamming
    thresholds = (0.0, 0.25)
    for i, row in enumerate(shortlists):
        found = kernel_scores(prepare(queries[i]), prepare(database[row]), thresholds)
        for threshold, scores in zip(thresholds, found.T):
            for j, image in enumerate(row):
                expected = plain_score(
                    queries.features[i], queries.valid[i],
                    database.features[image], database.valid[image], similarity, threshold,
                )  # fmt: skip
                assert scores[j] == pytest.approx(expected, abs=2e-6)


def test_bits_are_the_cosine_of_their_signs():
    signs = rng.choice([-1.0, 1.0], (9, 8, 64)).astype(np.float32)
    floats = best_similarities(prepare(DescriptorSet(signs[0])), prepare(DescriptorSet(signs[1:])))
    packed = DescriptorSet(pack_bits(signs))
    np.testing.assert_allclose(best_similarities(packed[0], packed[1:]), floats, atol=1e-6)


def test_opposite_bits_are_at_minus_one():
    zeros, ones = np.zeros((1, 32), np.uint8), np.full((1, 1, 32), 255, np.uint8)
    assert best_similarities(DescriptorSet(zeros), DescriptorSet(ones)) == -1


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


def test_whitened_scores_are_those_of_whitened_descriptors():
    queries, database, _ = random_sets()
    whitening = Whitening.fit(rng.normal(size=(500, 24)) * np.arange(1, 25))
    by_hand = [
        DescriptorSet((side.features - whitening.mean) @ whitening.matrix, side.valid)
        for side in (queries[0], database)
    ]
    found = kernel_scores(prepare(queries[0], whitening), prepare(database, whitening), (0.1,))
    np.testing.assert_allclose(found, kernel_scores(*map(prepare, by_hand), (0.1,)), atol=1e-5)


def test_floats_and_bits_do_not_mix():
    queries, database, _ = random_sets()
    with pytest.raises(ValueError, match="floats with floats"):
        best_similarities(DescriptorSet(pack_bits(queries.features[0])), database)
