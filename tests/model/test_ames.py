"""The model against the release's own figures (golden files), and what must not change a score."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import logits, run
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, NAMED, AMESConfig
from ames_jax.model.kinds import config_of
from ames_jax.model.torch_weights import from_torch, infer_config, to_torch
from ames_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = [("fp_tiny", 3), ("fp_tiny_gelu_prenorm", 3), ("bin_tiny", 3)]
FULL = [("fp_full", 2), ("bin_full", 2)]
TINY_TOLERANCE, FULL_TOLERANCE = 1e-5, 2e-5


def load(path, settings):
    arrays = np.load(path)
    weights = {name[6:]: arrays[name] for name in arrays.files if name.startswith("param/")}
    config = infer_config(weights, settings["num_heads"], settings["activation"])
    config = dataclasses.replace(config, binarizer="erf", sigma=settings["binarization_sigma"])
    return from_torch(weights, config), arrays


def sides(arrays, case):
    return (
        DescriptorSet(arrays[f"case{case}/{side}"], ~arrays[f"case{case}/{side}_mask"])
        for side in ("query", "database")
    )


def forward_in_training(model, query, database):
    return model(query, database, train=True)


def short_way(model, query, database):
    return model.logits(model.share_query(query), database)


def check_case(model, arrays, case, train, tolerance):
    query, database = sides(arrays, case)
    out = run(forward_in_training if train else AMES.__call__, model, query, database)
    logit, tokens = arrays[f"case{case}/logit"], arrays[f"case{case}/tokens"]
    np.testing.assert_allclose(out.logit, logit, atol=tolerance, rtol=0)
    real = np.concatenate([np.ones((len(logit), 1), bool), query.valid, database.valid], axis=1)
    np.testing.assert_allclose(np.asarray(out.tokens)[real], tokens[real], atol=tolerance, rtol=0)
    if not train:
        pairs = run(AMES.pair_logits, model, query, database)
        np.testing.assert_allclose(pairs, logit, atol=tolerance, rtol=0)
        short = [run(short_way, model, query[i], database[i : i + 1]) for i in range(len(logit))]
        np.testing.assert_allclose(np.concatenate(short), logit, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("name", "cases"), TINY)
def test_parity_with_the_release_tiny(name, cases, golden_settings):
    model, arrays = load(GOLDEN / f"{name}.npz", golden_settings[name])
    for case in range(cases):
        check_case(model, arrays, case, golden_settings[name]["cases"][case]["train"], TINY_TOLERANCE)


@pytest.mark.parametrize(("name", "cases"), FULL)
def test_parity_with_the_release_full_size(name, cases, reference, golden_settings):
    model, arrays = load(reference / "models" / f"{name}.npz", golden_settings[name])
    for case in range(cases):
        check_case(model, arrays, case, golden_settings[name]["cases"][case]["train"], FULL_TOLERANCE)


@pytest.fixture(scope="module")
def model():
    return AMES(AMESConfig(descriptor_width=24, bits=16, model_width=32, layers=2, feed_forward=48), nnx.Rngs(0))


def random_set(rng, *shape):
    return DescriptorSet(rng.standard_normal((*shape, 24), dtype=np.float32))


def test_padding_does_not_change_a_score(model, rng):
    query, database = random_set(rng, 3, 5), random_set(rng, 3, 4)
    score = logits(model, query, database)
    noise = jax.tree.map(lambda f: f + 3 if f.dtype != bool else f, (query.pad(9), database.pad(11)))
    noise = [dataclasses.replace(n, features=n.features.copy()) for n in noise]
    noise[0].features[:, :5], noise[1].features[:, :4] = query.features, database.features
    np.testing.assert_allclose(logits(model, *noise), score, atol=2e-6)
    np.testing.assert_allclose(run(AMES.pair_logits, model, *noise), score, atol=2e-6)
    np.testing.assert_allclose(run(short_way, model, noise[0][0], noise[1])[0], score[0], atol=2e-6)


def test_batch_order_and_neighbours_do_not_change_a_score(model, rng):
    query, database = random_set(rng, 6, 5), random_set(rng, 6, 4)
    score = np.asarray(logits(model, query, database))
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(logits(model, query[order], database[order]), score[order], atol=2e-6)
    np.testing.assert_allclose(logits(model, query[:2], database[:2]), score[:2], atol=2e-6)


def test_order_of_descriptors_does_not_change_a_score(model, rng):
    query, database = random_set(rng, 2, 5), random_set(rng, 2, 4)
    turned = DescriptorSet(query.features[:, ::-1])
    np.testing.assert_allclose(logits(model, turned, database), logits(model, query, database), atol=2e-6)


def test_bits_and_floats_may_meet_in_one_pair(model, rng):
    query, database = random_set(rng, 3, 5), random_set(rng, 3, 4)
    stored = model.tokenizer.binarize(database)
    np.testing.assert_array_equal(logits(model, query, stored), logits(model, query, database))


def test_an_empty_set_is_scored_by_the_matching_token_and_the_other_side(model, rng):
    query = random_set(rng, 2, 5)
    empty = DescriptorSet(np.zeros((2, 4, 24), np.float32), np.zeros((2, 4), bool))
    none = DescriptorSet(np.zeros((2, 0, 24), np.float32))
    assert np.isfinite(logits(model, query, empty)).all()
    np.testing.assert_allclose(logits(model, query, empty), logits(model, query, none), atol=2e-6)
    np.testing.assert_allclose(run(AMES.pair_logits, model, empty, query), logits(model, none, query), atol=2e-6)


def test_bfloat16_stays_near(rng):
    config = AMESConfig(descriptor_width=24, bits=16, model_width=32, layers=2, feed_forward=48)
    exact, rough = (AMES(dataclasses.replace(config, dtype=d), nnx.Rngs(0)) for d in ("float32", "bfloat16"))
    query, database = random_set(rng, 4, 9), random_set(rng, 4, 7)
    with jax.numpy_dtype_promotion("standard"):  # float32 parameters meet bfloat16 activations by design
        out = run(AMES.__call__, rough, query, database)
    assert out.logit.dtype == jnp.float32
    np.testing.assert_allclose(out.logit, logits(exact, query, database), atol=0.02)


def test_full_precision_database_tokens_are_rounded_as_they_are_stored(rng):
    config = AMESConfig(descriptor_width=24, model_width=32, layers=1, feed_forward=48)
    rounds, keeps = (AMES(dataclasses.replace(config, round_stored=r), nnx.Rngs(0)) for r in (True, False))
    database = random_set(rng, 2, 4)
    kept = np.asarray(keeps.database_tokens(database))
    np.testing.assert_array_equal(rounds.database_tokens(database), kept.astype(np.float16))
    np.testing.assert_array_equal(rounds.database_tokens(database, train=True), kept)


def test_released_sizes():
    counts = {}
    for name in NAMED:
        model = nnx.eval_shape(lambda name=name: AMES(AMESConfig.named(name), nnx.Rngs(0)))
        counts[name] = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert counts["dinov2_ames"] == 2_079_745
    assert counts["cvnet_ames"] == 2_112_513
    assert counts["dinov2_ames_dist"] == 2_096_129


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "not divisible by heads"),
        ({"bits": 12}, "whole number of bytes"),
        ({"layers": 0}, "at least 1"),
        ({"activation": "selu"}, "relu, gelu"),
        ({"binarizer": "hard"}, "straight_through, erf"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        AMESConfig(**fields)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="did you mean dinov2_ames_dist"):
        AMESConfig.named("dinov2_ames_dits")
    with pytest.raises(UserError, match="unknown model settings depth"):
        config_of({"depth": 3})


def test_cross_weights_are_those_of_the_forward_pass(golden_settings):
    """Mixing the values with them gives the cross block's output; nothing is left for padding."""
    name = "fp_tiny_gelu_prenorm"
    model, arrays = load(GOLDEN / f"{name}.npz", golden_settings[name])
    query, database = sides(arrays, 0)

    def both(model):
        sequence = model._sequence(query, database, train=False)
        layer = model.layers[0]
        inner = layer.self_block(sequence)
        normed = layer.norm_cross(inner.tokens) if layer.pre_norm else inner.tokens
        _, _, value = layer.cross_attention.project(normed)
        return model.cross_weights(query, database)[0], layer.cross_attention(normed, inner, cross=True), value

    weights, expected, value = run(both, model)
    count, attention = query.count, model.layers[0].cross_attention
    keys = {"query": slice(count, None), "matching": slice(None), "database": slice(0, count + 1)}
    mixed = []
    for side, which in keys.items():
        weight = getattr(weights, side)
        rows = weight[:, :, None] if side == "matching" else weight
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)
        mixed.append(jnp.einsum("bhrk,bhkc->bhrc", rows, value[:, :, which]))
    np.testing.assert_allclose(attention.merge(jnp.concatenate(mixed, axis=2)), expected, atol=1e-5)
    assert np.all(
        np.asarray(weights.query)[..., 1:][
            ~np.broadcast_to(database.valid[:, None, None], weights.query[..., 1:].shape)
        ]
        == 0
    )


def test_matches_of_bits_join_the_logit_as_the_kernel_counts_them(rng):
    config = AMESConfig(descriptor_width=16, bits=32, model_width=16, heads=2, layers=2, feed_forward=16)
    plain = AMES(config, nnx.Rngs(0))
    graph = nnx.graphdef(AMES(dataclasses.replace(config, match_weight=0.5, match_threshold=0.2), nnx.Rngs(1)))
    counting = nnx.merge(graph, nnx.split(plain)[1])
    query, database = (
        plain.tokenizer.binarize(DescriptorSet(rng.standard_normal((3, n, 16), np.float32), rng.random((3, n)) < 0.8))
        for n in (5, 7)
    )
    signs = [np.unpackbits(side.features, axis=-1) * 2.0 - 1 for side in (query, database)]
    similarity = np.where(database.valid[:, None], np.einsum("bqc,btc->bqt", *signs) / 32, -1)
    kernel = np.where(query.valid, np.maximum(similarity.max(2) - 0.2, 0), 0).sum(1)
    expected = logits(plain, query, database) + 0.5 * kernel
    np.testing.assert_allclose(run(AMES.pair_logits, counting, query, database), expected, atol=1e-5)
    np.testing.assert_allclose(logits(counting, query, database), expected, atol=1e-5)
    np.testing.assert_allclose(run(short_way, counting, query[0], database)[0], expected[0], atol=1e-5)
    with pytest.raises(UserError, match="match_weight"):
        dataclasses.replace(config, bits=None, match_weight=1.0)
    with pytest.raises(UserError, match="match_weight"):
        to_torch(counting)
