"""Anchors and partner probabilities as in the release; triplets a pure function of (seed, epoch, position)."""

from pathlib import Path

import numpy as np
import pytest

from ames_jax.data.neighbours import Neighbours
from ames_jax.runtime.errors import UserError
from ames_jax.training.triplets import Triplets

GOLDEN = Path(__file__).parents[1] / "golden" / "gldv2_train_triplets.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def golden_neighbours(golden):
    # The golden file holds exact similarities for five anchors; of the others, how many lie above 0.
    similarities = (np.arange(60) < golden["above_zero"][:, None]).astype(np.float32)
    similarities[golden["anchors"]] = golden["similarities"]
    return Neighbours(golden["indices"].astype(np.int32), similarities)


def small(seed=0, count=60, k=20, classes=4, itself=False):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count) * 1009 - 5
    order = np.argsort(random.random((count, count)) + 2 * np.eye(count), axis=1)[:, :k]
    if itself:
        order = np.concatenate([np.arange(count)[:, None], order], axis=1)
    similarities = np.sort(random.random(order.shape).astype(np.float32), axis=1)[:, ::-1]
    return labels, Neighbours(order.astype(np.int32), np.ascontiguousarray(similarities))


def partners(triplets, anchor):
    """Rows of an anchor's candidates, and the probability of each as positive and as negative."""
    indices, positive, negative = (values[0] for values in triplets.candidates(np.array([anchor])))
    listed = indices >= 0
    return indices[listed], (positive / positive.sum())[listed], (negative / negative.sum())[listed]


def test_valid_anchors_are_those_of_the_release(golden):
    triplets = Triplets(golden["labels"], golden_neighbours(golden), seed=0, top=60)
    assert len(triplets) == golden["valid_count"]
    assert triplets.anchors.sum() == golden["valid_sum"]
    np.testing.assert_array_equal(triplets.anchors[:50], golden["valid_first"])


def test_partner_probabilities_are_those_of_the_release(golden):
    triplets = Triplets(golden["labels"], golden_neighbours(golden), seed=0, top=60)
    for i, anchor in enumerate(golden["anchors"]):
        rows, positive, negative = partners(triplets, anchor)
        np.testing.assert_array_equal(rows, golden["indices"][anchor])
        # The release works in float32.
        np.testing.assert_allclose(positive, golden["positive"][i], atol=2e-8)
        np.testing.assert_allclose(negative, golden["negative"][i], atol=2e-8)


def test_every_anchor_comes_once_an_epoch_in_a_new_order():
    triplets = Triplets(*small(), seed=3, top=20, minimum=2)
    positions = np.arange(len(triplets))
    first, second = (triplets.rows(epoch, positions) for epoch in (0, 1))
    np.testing.assert_array_equal(np.sort(first[:, 0]), triplets.anchors)
    np.testing.assert_array_equal(np.sort(second[:, 0]), triplets.anchors)
    assert (first[:, 0] != second[:, 0]).any()


def test_a_triplet_depends_on_seed_epoch_and_position_alone():
    labels, neighbours = small()
    triplets = Triplets(labels, neighbours, seed=3, top=20, minimum=2)
    whole = triplets.rows(7, np.arange(len(triplets)))
    again = Triplets(labels, neighbours, seed=3, top=20, minimum=2)
    for position in (5, 0, len(again) - 1):
        again.rows(2, np.array([1]))
        np.testing.assert_array_equal(again.rows(7, np.array([position]))[0], whole[position])
    other = Triplets(labels, neighbours, seed=4, top=20, minimum=2)
    assert (other.rows(7, np.arange(len(other))) != whole).any()


def test_labels_agree_and_partners_are_among_the_neighbours():
    labels, neighbours = small()
    triplets = Triplets(labels, neighbours, seed=0, top=10, minimum=2)
    for epoch in range(20):
        rows = triplets.rows(epoch, np.arange(len(triplets)))
        assert (labels[rows[:, 0]] == labels[rows[:, 1]]).all()
        assert (labels[rows[:, 0]] != labels[rows[:, 2]]).all()
        near = neighbours.indices[rows[:, 0], :10]
        assert (near == rows[:, 1:2]).any(axis=1).all()
        assert (near == rows[:, 2:]).any(axis=1).all()


def test_drawn_partners_follow_the_probabilities():
    labels, neighbours = small()
    triplets = Triplets(labels, neighbours, seed=0, top=20, minimum=2)
    anchor = triplets.anchors[0]
    draws = np.concatenate([triplets.rows(epoch, np.arange(len(triplets))) for epoch in range(3000)])
    draws = draws[draws[:, 0] == anchor]
    candidates, *probabilities = partners(triplets, anchor)
    for column, probability in enumerate(probabilities, start=1):
        share = (draws[:, column, None] == candidates).mean(axis=0)
        assert (share[probability == 0] == 0).all()
        # five standard deviations of a share of 3000 draws
        assert (np.abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / 3000) + 1e-12).all()


def test_the_image_itself_in_the_list_changes_nothing():
    labels, neighbours = small()
    _, with_itself = small(itself=True)
    similarities = np.concatenate([np.ones((60, 1), np.float32), neighbours.similarities], axis=1)
    with_itself = Neighbours(with_itself.indices, similarities)
    for top in (10, 20, 30):
        plain, other = (Triplets(labels, n, seed=0, top=top, minimum=2) for n in (neighbours, with_itself))
        np.testing.assert_array_equal(plain.anchors, other.anchors)
        positions = np.arange(len(plain))
        np.testing.assert_array_equal(plain.rows(0, positions), other.rows(0, positions))


def test_similarities_of_zero_and_below_do_not_count():
    labels, neighbours = small()
    similarities = neighbours.similarities.copy()
    similarities[:, 6:] = 0
    similarities[:, 8:] = -0.5
    triplets = Triplets(labels, Neighbours(neighbours.indices, similarities), seed=0, top=20, minimum=1)
    short = Neighbours(neighbours.indices[:, :6], neighbours.similarities[:, :6])
    expected = Triplets(labels, short, seed=0, top=20, minimum=1)
    np.testing.assert_array_equal(triplets.anchors, expected.anchors)
    rows = triplets.rows(0, np.arange(len(triplets)))
    np.testing.assert_array_equal(rows, expected.rows(0, np.arange(len(triplets))))


def test_blocks_do_not_change_the_anchors(monkeypatch):
    labels, neighbours = small()
    whole = Triplets(labels, neighbours, seed=0, top=20, minimum=2).anchors
    monkeypatch.setattr("ames_jax.training.triplets.BLOCK", 7)
    np.testing.assert_array_equal(Triplets(labels, neighbours, seed=0, top=20, minimum=2).anchors, whole)


def test_lists_of_other_images_are_refused():
    labels, neighbours = small()
    with pytest.raises(UserError, match="59 labels but neighbour lists of 60 images"):
        Triplets(labels[:-1], neighbours, seed=0)
    with pytest.raises(UserError, match="no image has 50 images of its own label"):
        Triplets(labels, neighbours, seed=0, minimum=50)
    with pytest.raises(UserError, match="name image 60 of 60"):
        Triplets(labels, Neighbours(neighbours.indices + 1, neighbours.similarities), seed=0)
