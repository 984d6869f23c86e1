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
TINY, FULL = ("fp_tiny", "fp_tiny_gelu_prenorm", "bin_tiny"), ("fp_full", "bin_full")
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


def joined(sets):
    """Cases of one side as one batch, padded to the longest, so that one program scores all of them."""
    padded = [one.pad(max(other.count for other in sets)) for one in sets]
    return DescriptorSet(*(np.concatenate([getattr(one, name) for one in padded]) for name in ("features", "valid")))


def real_tokens(query, database):
    return np.concatenate([np.ones((len(query.valid), 1), bool), query.valid, database.valid], axis=1)


def check_cases(model, arrays, cases, train, tolerance):
    pairs = [tuple(sides(arrays, case)) for case in cases]
    query, database = map(joined, zip(*pairs))
    logits = np.concatenate([arrays[f"case{case}/logit"] for case in cases])
    tokens = [arrays[f"case{case}/tokens"][real_tokens(*pair)] for case, pair in zip(cases, pairs)]
    out = run(forward_in_training if train else AMES.__call__, model, query, database)
    np.testing.assert_allclose(out.logit, logits, atol=tolerance, rtol=0)
    found = np.asarray(out.tokens)[real_tokens(query, database)]
    np.testing.assert_allclose(found, np.concatenate(tokens), atol=tolerance, rtol=0)
    if not train:
        np.testing.assert_allclose(run(AMES.pair_logits, model, query, database), logits, atol=tolerance, rtol=0)
        short = [run(short_way, model, query[i], database[i : i + 1]) for i in range(len(logits))]
        np.testing.assert_allclose(np.concatenate(short), logits, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_parity_with_the_release_tiny(name, golden_settings):
    model, arrays = load(GOLDEN / f"{name}.npz", golden_settings[name])
    modes = [case["train"] for case in golden_settings[name]["cases"]]
    for train in (False, True):
        check_cases(model, arrays, [i for i, mode in enumerate(modes) if mode == train], train, TINY_TOLERANCE)


@pytest.mark.parametrize("name", FULL)
def test_parity_with_the_release_full_size(name, reference, golden_settings):
    model, arrays = load(reference / "models" / f"{name}.npz", golden_settings[name])
    assert [case["train"] for case in golden_settings[name]["cases"]] == [False, False]
    check_cases(model, arrays, [0, 1], False, FULL_TOLERANCE)


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
        ({"match_form": "both"}, "query, mutual"),
        ({"match_query": "float"}, "bits, floats"),
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


MATCHING = AMESConfig(descriptor_width=16, model_width=16, heads=2, layers=2, feed_forward=16)


def counted_by_hand(query, database, threshold, form):
    """The sum over pairs of matching vectors [Q, C] and [T, C], written out."""
    cosines = query @ database.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(database, axis=1)
    total = 0.0
    for row in cosines:
        best = row.max(initial=-1)
        partners = [cosines[:, j].max() for j in np.flatnonzero(row == best)]
        if form == "query" or any(best == other for other in partners):
            total += max(0.0, best - threshold)
    return total


def sides_of(rng, width=16):
    return [DescriptorSet(rng.standard_normal((3, n, width), np.float32), rng.random((3, n)) < 0.8) for n in (5, 7)]


@pytest.mark.parametrize("form", ["query", "mutual"])
@pytest.mark.parametrize(("bits", "asking"), [(32, "bits"), (32, "floats"), (32, "packed"), (None, "bits")])
@pytest.mark.parametrize("learned", [False, True])
def test_matches_join_the_logit_as_they_are_counted_by_hand(form, bits, asking, learned, rng):
    config = dataclasses.replace(MATCHING, bits=bits)
    plain, (query, database) = AMES(config, nnx.Rngs(0)), sides_of(rng)
    fields = {"match_weight": 0.5, "match_threshold": 0.2, "match_form": form, "match_learned": learned}
    counting = AMES(dataclasses.replace(config, **fields, match_query=asking.replace("packed", "floats")), nnx.Rngs(1))
    nnx.update(counting, nnx.state(plain, nnx.Param))
    if bits:
        database = plain.tokenizer.binarize(database)
    if asking == "packed":  # a float query and its bits are of one length, yet only bits are there to compare
        query = plain.tokenizer.binarize(query)

    def vectors(side, use_bits):
        if side.is_packed:
            return np.unpackbits(side.features, axis=-1).astype(np.float32) * 2 - 1
        if bits is None:
            return np.asarray(plain.database_tokens(side) if side is database else plain.tokenizer(side))
        projected = np.asarray(plain.tokenizer.projections(side.features))
        return np.where(projected > 0, 1, -1).astype(np.float32) if use_bits else projected

    of_query, of_database = vectors(query, asking == "bits"), vectors(database, True)
    by_hand = [
        counted_by_hand(of_query[i][query.valid[i]], of_database[i][database.valid[i]], 0.2, form) for i in range(3)
    ]
    expected = logits(plain, query, database) + 0.5 * np.float32(by_hand)
    np.testing.assert_allclose(run(AMES.pair_logits, counting, query, database), expected, atol=1e-5)
    np.testing.assert_allclose(logits(counting, query, database), expected, atol=1e-5)
    np.testing.assert_allclose(run(short_way, counting, query[0], database)[0], expected[0], atol=1e-5)
    with pytest.raises(UserError, match="match_weight"):
        to_torch(counting)


@pytest.mark.parametrize("form", ["query", "mutual"])
def test_matches_do_not_depend_on_order_or_padding(form, rng):
    """Eight bits, so that many partners are equally near."""
    bits = (
        DescriptorSet(rng.integers(0, 4, (2, 9, 1), np.uint8)),
        DescriptorSet(rng.integers(0, 4, (2, 12, 1), np.uint8)),
    )
    config = dataclasses.replace(MATCHING, bits=8, match_weight=1.0, match_threshold=-0.5, match_form=form)
    counting = AMES(config, nnx.Rngs(0))

    def matches(query, database):
        vectors = (counting._vectors(side) for side in (query, database))
        return np.asarray(counting._matches(*vectors, query.valid, database.valid))

    expected = matches(*bits)
    turned = [DescriptorSet(side.features[:, rng.permutation(side.count)]) for side in bits]
    np.testing.assert_allclose(matches(*turned), expected, atol=1e-6)
    np.testing.assert_allclose(matches(*(side.pad(15) for side in bits)), expected, atol=1e-6)
    nothing = DescriptorSet(bits[1].features, np.zeros((2, 12), bool))
    np.testing.assert_array_equal(matches(bits[0], nothing), 0)
    np.testing.assert_array_equal(matches(nothing, bits[0]), 0)
    np.testing.assert_array_equal(matches(bits[0], DescriptorSet(np.zeros((2, 0, 16), np.float32))), 0)


@pytest.mark.parametrize("asking", ["bits", "floats"])
def test_mutual_matches_teach_hyperplanes_weight_and_threshold(asking, rng):
    fields = {"match_form": "mutual", "match_query": asking, "match_threshold": -0.5, "match_learned": True}
    model = AMES(dataclasses.replace(MATCHING, bits=32, **fields, match_weight=1.0), nnx.Rngs(0))
    graph, state = nnx.split(model)
    query, database = sides_of(rng)

    def total(state):
        merged = nnx.merge(graph, state)
        vectors = merged._vectors(query, True, asking=True), merged._vectors(database, True)
        return merged._matches(*vectors, query.valid, database.valid).sum()

    gradient = jax.grad(total)(state)
    assert float(gradient["match_threshold"][...]) < 0 < float(gradient["match_weight"][...])
    values = gradient["tokenizer"]["hyperplanes"][...]
    assert 0 < np.abs(values).max() < np.inf
