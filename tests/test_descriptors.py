import dataclasses
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ames_jax.descriptors import DescriptorSet, pack_bits, stack, unpack_bits, validate
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.retrieval.scorer import Scorer, score_pairs, score_shortlist
from ames_jax.runtime.errors import UserError


def make(rng, *shape, width=6):
    return DescriptorSet(
        rng.standard_normal((*shape, width), dtype=np.float32), None, rng.random((*shape, 2)), rng.random(shape)
    )


def test_truncate_keeps_the_strongest_rows_of_every_field(rng):
    descriptors = make(rng, 3, 5)
    short = descriptors.truncate(2)
    np.testing.assert_array_equal(short.features, descriptors.features[:, :2])
    np.testing.assert_array_equal(short.xy, descriptors.xy[:, :2])
    np.testing.assert_array_equal(short.scale, descriptors.scale[:, :2])
    assert short.valid is None
    assert descriptors.truncate(9) is descriptors


def test_pad_marks_what_it_adds(rng):
    padded = make(rng, 3, 5).pad(7)
    assert padded.features.shape == (3, 7, 6)
    np.testing.assert_array_equal(padded.valid, [[True] * 5 + [False] * 2] * 3)
    assert not padded.features[:, 5:].any()
    with pytest.raises(ValueError, match="cannot pad 7 descriptors to 3"):
        padded.pad(3)


def test_indexing_leaves_the_descriptor_axis_alone(rng):
    descriptors = make(rng, 3, 5).pad(7)
    one = descriptors[1]
    assert one.features.shape == (7, 6)
    assert one.valid.shape == (7,)
    assert descriptors[np.array([2, 0])].xy.shape == (2, 7, 2)


def test_stack_pads_to_the_longest(rng):
    stacked = stack([make(rng, 2), make(rng, 4)])
    np.testing.assert_array_equal(stacked.valid.sum(1), [2, 4])
    assert stack([make(rng, 4), make(rng, 4)]).valid is None
    assert stack([make(rng, 2), make(rng, 4)], 3).features.shape == (2, 3, 6)


def test_bits_round_trip_and_zero_is_stored_as_zero(rng):
    values = rng.standard_normal((4, 16)).astype(np.float32)
    values[0, 3] = 0
    packed = pack_bits(values)
    assert packed.shape == (4, 2)
    np.testing.assert_array_equal(np.asarray(unpack_bits(packed)), np.where(values > 0, 1, -1))
    assert packed[0, 0] >> 4 & 1 == 0


def test_first_value_is_the_highest_bit():
    assert pack_bits(np.array([1, -1, -1, -1, -1, -1, -1, -1])) == 128


@pytest.mark.parametrize(
    ("change", "bits", "message"),
    [
        ({"features": np.zeros((4, 7), np.float32)}, None, "width 6, found 7"),
        ({"features": np.zeros((4, 2), np.uint8)}, None, "full-precision model"),
        ({"features": np.zeros((4, 3), np.uint8)}, 16, "expected 16 bits .2 bytes. per descriptor, found 3"),
        ({"valid": np.ones(5, bool)}, None, "valid has shape"),
        ({"features": np.zeros(6, np.float32)}, None, "found an array of shape"),
    ],
)
def test_validate_says_what_is_wrong(change, bits, message):
    good = DescriptorSet(np.zeros((4, 6), np.float32))
    validate(good, 6, None, "query")
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(good, **change), 6, bits, "query")


def test_validate_names_the_row_of_a_nan_but_not_of_padding():
    features = np.zeros((2, 4, 6), np.float32)
    features[1, 3, 0] = np.nan
    with pytest.raises(UserError, match=r"database: descriptor \(1, 3\) holds NaN"):
        validate(DescriptorSet(features), 6, None, "database")
    valid = np.ones((2, 4), bool)
    valid[1, 3] = False
    validate(DescriptorSet(features, valid), 6, None, "database")


def kinds_of(features):
    """The same numbers in every kind of array that a user may have."""
    kinds = {
        "big-endian": features.astype(">f4"),
        "lists": features.tolist(),
        "objects": features.astype(object),
        "lists of arrays": list(features),
        "float64": features.astype(np.float64),
        "float64 beyond float32": features.astype(np.float64) * 2.0**660,
        "float64 below float32": features.astype(np.float64) * 2.0**-660,
        "Fortran order": np.asfortranarray(features),
        "JAX": jnp.asarray(features),
        "tiny": features * np.float32(2.0**-70),
        "huge": features * np.float32(2.0**70),
    }
    if importlib.util.find_spec("torch"):
        import torch

        kinds["PyTorch"] = torch.from_numpy(features).requires_grad_()
    return kinds


@pytest.mark.parametrize("bits", [None, 16])
def test_every_kind_of_array_gives_the_same_scores(rng, bits):
    config = AMESConfig(descriptor_width=6, bits=bits, model_width=8, heads=1, layers=1, feed_forward=8)
    scorer = Scorer(AMES(config, nnx.Rngs(0)))
    query, database = (rng.standard_normal(shape, np.float32) for shape in ((5, 6), (3, 4, 6)))
    expected = scorer.shortlist(DescriptorSet(query), DescriptorSet(database))
    assert np.ptp(expected) > 0
    databases = kinds_of(database)
    for name, features in kinds_of(query).items():
        found = scorer.shortlist(DescriptorSet(features), DescriptorSet(databases[name]))
        np.testing.assert_array_equal(found, expected, err_msg=name)
    whole = scorer.shortlist(DescriptorSet((query * 4).astype(np.int64)), DescriptorSet(database))
    np.testing.assert_array_equal(whole, scorer.shortlist(DescriptorSet(np.trunc(query * 4)), DescriptorSet(database)))


def test_every_kind_of_mask_is_the_same(rng):
    config = AMESConfig(descriptor_width=6, model_width=8, heads=1, layers=1, feed_forward=8)
    scorer = Scorer(AMES(config, nnx.Rngs(0)))
    query, database = rng.standard_normal((5, 6), np.float32), rng.standard_normal((2, 4, 6), np.float32)
    mask = np.array([[True, True, False, True], [True, False, False, False]])
    expected = scorer.shortlist(DescriptorSet(query), DescriptorSet(database, mask))
    kinds = [mask.astype(int), mask.astype(np.float32), mask.tolist(), mask.astype(int).tolist(), mask.astype(object)]
    for kind in [*kinds, jnp.asarray(mask)]:
        np.testing.assert_array_equal(scorer.shortlist(DescriptorSet(query), DescriptorSet(database, kind)), expected)
    with pytest.raises(UserError, match="valid holds int64 beside 0 and 1"):
        scorer.shortlist(DescriptorSet(query), DescriptorSet(database, mask * 7))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1.0, 2.0], [3.0]], "list is no array of numbers"),
        (np.array([["a", 1.0]], object), "ndarray is no array of numbers"),
        ([["a", "b"]], "expected numbers, found <U1"),
        ([[1j, 2.0]], "expected numbers, found complex128"),
        (np.ma.array(np.ones((2, 3))), "a masked array"),
    ],
)
def test_what_is_no_array_of_numbers_is_told(features, message):
    with pytest.raises(UserError, match=f"DescriptorSet: features: {message}"):
        DescriptorSet(features)


@pytest.mark.parametrize(
    ("query", "database", "message"),
    [
        (
            (1, 5, 6),
            (2, 4, 6),
            r"query: expected descriptors \[N, D\] of one image, found an array of shape \(1, 5, 6\)",
        ),
        ((5, 6), (4, 6), r"database: expected descriptors \[images, N, D\], found an array of shape \(4, 6\)"),
        ((5, 7), (2, 4, 6), "query: the model takes descriptors of width 6, found 7"),
    ],
)
def test_other_numbers_of_axes_are_told(query, database, message):
    model = AMES(AMESConfig(descriptor_width=6, model_width=8, heads=1, layers=1, feed_forward=8), nnx.Rngs(0))
    with pytest.raises(UserError, match=message):
        score_shortlist(model, *(DescriptorSet(np.ones(shape, np.float32)) for shape in (query, database)))


def test_what_is_no_pair_is_told():
    model = AMES(AMESConfig(descriptor_width=6, model_width=8, heads=1, layers=1, feed_forward=8), nnx.Rngs(0))
    one = DescriptorSet(np.ones((1, 4, 6), np.float32))
    with pytest.raises(UserError, match=r"floats or of packed bits \(uint8\), found bool"):
        score_pairs(model, DescriptorSet(np.ones((1, 4, 6), bool)), one)
    with pytest.raises(UserError, match="2 queries for 1 database sets"):
        score_pairs(model, DescriptorSet(np.ones((2, 4, 6), np.float32)), one)
    for nothing, name in ((None, "NoneType"), (3.0, "float"), ("abc", "str"), ({}, "dict")):
        with pytest.raises(UserError, match=f"expected an array of descriptors, found {name}"):
            score_pairs(model, DescriptorSet(nothing), one)
