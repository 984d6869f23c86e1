"""FLOP counts against hand-made sums and against what XLA counts in the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ames_jax.benchmarks import flops
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig

SMALL = AMESConfig(descriptor_width=4, model_width=2, heads=1, layers=2, feed_forward=3)


def by_hand(config: AMESConfig, q: int, t: int) -> int:
    """One pair with all of its tokens: every group projects, sees its keys, and goes through the feed-forward."""
    s, d = 1 + q + t, config.model_width
    own = q * (q + 1) + t * (t + 1) + s  # (row, key) pairs of a self block; the matching token sees all
    other = q * (t + 1) + t * (q + 1) + s
    layer = 2 * (8 * s * d**2) + 4 * d * (own + other) + 4 * s * d * config.feed_forward
    return flops.tokenizer(config, q + t) + config.layers * layer + 2 * d


def test_products_are_counted_wherever_they_stand():
    a, b = jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((3, 5), jnp.float32)
    assert flops.matrix_products(lambda a, b: a @ b, a, b) == 2 * 2 * 3 * 5
    assert flops.matrix_products(jax.jit(lambda a, b: jax.checkpoint(jnp.matmul)(a, b).sum()), a, b) == 60

    def loop(a, b):
        return jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, length=7)[0]

    assert flops.matrix_products(loop, a, b) == 7 * 60


def test_parts_by_hand():
    assert flops.tokenizer(SMALL, 5) == 2 * 5 * 4 * 2
    assert flops.tokenizer(AMESConfig(descriptor_width=4, bits=8, model_width=2, heads=1), 5) == 2 * 5 * (4 * 8 + 8 * 2)
    for config in (SMALL, AMESConfig(), AMESConfig(bits=128, layers=1)):
        assert flops.pair(config, 12, 7) == by_hand(config, 12, 7)


@pytest.mark.parametrize(
    ("q", "t", "needed", "dense"),
    [
        (600, 50, 288_377_365_504, 4_857_492_736),
        (600, 600, 706_694_165_504, 12_343_547_136),
        (10, 10, 7_033_688_064, 88_765_696),
    ],
)
def test_released_size(q, t, needed, dense):
    """A shortlist of 100 and a dense pair, as they were once counted by hand from the blocks of the paper."""
    config = AMESConfig()
    assert flops.shortlist(config, q, t, 100) == needed
    assert flops.dense_pair(config, q, t) == dense


def test_a_shortlist_costs_its_pairs_and_the_query_once():
    works = [flops.shortlist(SMALL, 6, 5, images) for images in (1, 2, 10)]
    pair = works[1] - works[0]
    assert works[2] - works[0] == 9 * pair
    assert works[0] - pair > 0
    released = AMESConfig()
    assert flops.shortlist(released, 100, 50, 1) < flops.pair(released, 100, 50) < flops.dense_pair(released, 100, 50)


def test_stored_bits_are_not_projected_again():
    config = AMESConfig(descriptor_width=4, bits=8, model_width=2, heads=1)
    saved = flops.shortlist(config, 6, 5, 10) - flops.shortlist(config, 6, 5, 10, packed=True)
    assert saved == 10 * 2 * 5 * 4 * 8


def test_training_counts_forward_backward_and_teacher():
    forward = flops.pair(SMALL, 8, 8)
    descriptors = 2 * 16 * 4 * 2  # nobody needs their gradient
    assert flops.train_pair(SMALL, 8, 8, SMALL, 8) == 3 * forward - descriptors + forward
    alone = flops.train_pair(SMALL, 8, 8, None, 8)
    assert 0.5 * forward < (alone + descriptors) / 3 < forward  # the last layer for the matching token alone
    # Of the teacher's last layer, rows that the loss does not read are not counted.
    assert flops.train_pair(SMALL, 2, 2, SMALL, 8) < flops.train_pair(SMALL, 2, 2, None, 8) + 1.5 * forward


def test_the_model_does_what_is_counted():
    config = AMESConfig(descriptor_width=64, model_width=64, heads=1, layers=2, feed_forward=256)
    model = AMES(config, nnx.Rngs(0))
    graph, params = nnx.split(model)
    q, t = 96, 64
    sets = [DescriptorSet(jax.ShapeDtypeStruct((1, n, 64), np.float32)) for n in (q, t)]
    lowered = jax.jit(lambda p, a, b: nnx.merge(graph, p)(a, b).tokens).lower(params, *sets)
    counted = lowered.cost_analysis()["flops"]
    assert counted == pytest.approx(flops.pair(config, q, t), rel=0.1)
