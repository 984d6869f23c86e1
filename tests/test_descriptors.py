import dataclasses

import numpy as np
import pytest

from ames_jax.descriptors import DescriptorSet, pack_bits, stack, unpack_bits, validate
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
