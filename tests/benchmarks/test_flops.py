"""FLOP counts against hand-made sums and against what XLA counts in the program."""

import jax
import numpy as np
import pytest
from flax import nnx

from ames_jax.benchmarks import flops
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig

SMALL = AMESConfig(descriptor_width=4, model_width=2, heads=1, layers=2, feed_forward=3)


def test_parts_by_hand():
    # tokenizer: 5 descriptors × 4 × 2 multiply-adds
    assert flops.tokenizer(SMALL, 5) == 2 * 5 * 4 * 2
    # Q = 2, T = 1, S = 4. q, k, v: 4 rows × 2 × 6; scores and mixing: 2 · 2 a (row, key); output: 4 rows × 2 × 2
    # self: query 2 rows × 3 keys, database 1 × 2, matching 1 × 4
    assert flops.self_block(SMALL, 2, 1) == 2 * 4 * 2 * 6 + 2 * 2 * 2 * (6 + 2 + 4) + 2 * 4 * 2 * 2
    # cross: query 2 rows × 2 keys, database 1 × 3, matching 1 × 4
    assert flops.cross_block(SMALL, 2, 1) == 2 * 4 * 2 * 6 + 2 * 2 * 2 * (4 + 3 + 4) + 2 * 4 * 2 * 2
    assert flops.feed_forward(SMALL, 4) == 2 * 4 * 2 * 3 * 2


def test_bits():
    binary = AMESConfig(descriptor_width=4, bits=8, model_width=2, heads=1)
    assert flops.tokenizer(binary, 5) == 2 * 5 * (4 * 8 + 8 * 2)
    assert flops.tokenizer(binary, 5, packed=True) == 2 * 5 * 8 * 2


def test_released_size_agrees_with_the_published_estimates():
    config = AMESConfig()
    dense = [flops.dense_pair(config, q, t) / 1e9 for q, t in ((600, 50), (600, 600), (100, 100))]
    assert dense == pytest.approx([4.9, 12.3, 1.0], rel=0.2)
    blocks = [flops.tokens_pair(config, q, t) / 1e9 for q, t in ((600, 50), (600, 600), (100, 100))]
    assert blocks == pytest.approx([3.6, 8.4, 0.9], rel=0.2)
    for (q, t), whole in zip(((600, 50), (600, 600), (100, 100)), blocks):
        assert 0.6 * whole < flops.shortlist_pair(config, q, t) / 1e9 < 0.9 * whole


def test_a_shortlist_costs_its_pairs_and_the_query_once():
    one, ten = flops.shortlist(SMALL, 6, 5, 1), flops.shortlist(SMALL, 6, 5, 10)
    assert ten - one == 9 * flops.shortlist_pair(SMALL, 6, 5)
    assert one - flops.shortlist_pair(SMALL, 6, 5) == flops.query_once(SMALL, 6)
    released = AMESConfig()
    costs = [count(released, 100, 50) for count in (flops.logit_pair, flops.tokens_pair, flops.dense_pair)]
    assert flops.shortlist_pair(released, 100, 50) < costs[0] < costs[1] < costs[2]


def test_training_counts_forward_backward_and_teacher():
    forward = flops.logit_pair(SMALL, 6, 5)
    assert flops.train_pair(SMALL, 6, 5, None, 8) == 3 * forward - 2 * 11 * 4 * 2
    with_teacher = flops.train_pair(SMALL, 8, 8, SMALL, 8) - 3 * flops.tokens_pair(SMALL, 8, 8) + 2 * 16 * 4 * 2
    assert with_teacher == flops.tokens_pair(SMALL, 8, 8)
    assert flops.train_pair(SMALL, 2, 2, SMALL, 8) < flops.train_pair(SMALL, 2, 2, None, 8) + with_teacher * 1.5


def test_the_model_does_what_is_counted():
    config = AMESConfig(descriptor_width=64, model_width=64, heads=1, layers=2, feed_forward=256)
    model = AMES(config, nnx.Rngs(0))
    graph, params = nnx.split(model)
    q, t = 96, 64
    sets = [DescriptorSet(jax.ShapeDtypeStruct((1, n, 64), np.float32)) for n in (q, t)]
    lowered = jax.jit(lambda p, a, b: nnx.merge(graph, p)(a, b).tokens).lower(params, *sets)
    counted = lowered.cost_analysis()["flops"]
    assert counted == pytest.approx(flops.tokens_pair(config, q, t), rel=0.1)
