"""One record: what goes in comes out, for every storage dtype; what does not fit is named."""

import dataclasses

import numpy as np
import pytest

from ames_jax.data.records import ImageRecord, RecordFormat, quantize, real_rows
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.errors import UserError


def image(rows, width=16, dtype=np.float16, seed=0, **fields):
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, width)).astype(dtype)
    return ImageRecord("α/7.jpg", 7, DescriptorSet(features, **fields))


def test_float16_comes_back_padded_and_exact():
    random = np.random.default_rng(1)
    geometry = {"xy": random.random((5, 2), np.float32), "scale": random.random(5, np.float32)}
    stored = RecordFormat(8, 16, "float16", ("xy", "scale"))
    given = image(5, **geometry)
    back = stored.decode(stored.encode(given))
    assert (back.id, back.label) == ("α/7.jpg", 7)
    np.testing.assert_array_equal(back.descriptors.features[:5], given.descriptors.features)
    assert not back.descriptors.features[5:].any()
    np.testing.assert_array_equal(back.descriptors.valid, np.arange(8) < 5)
    np.testing.assert_array_equal(back.descriptors.xy[:5], geometry["xy"])
    np.testing.assert_array_equal(back.descriptors.scale[:5], geometry["scale"])
    assert back.descriptors.weight is None


def test_only_the_strongest_are_kept():
    stored = RecordFormat(3, 16)
    given = image(5)
    back = stored.decode(stored.encode(given))
    np.testing.assert_array_equal(back.descriptors.features, given.descriptors.features[:3])
    assert back.descriptors.valid.all()


def test_int8_error_is_half_a_step():
    stored = RecordFormat(6, 64, "int8")
    given = image(6, 64, np.float32)
    given.descriptors.features[2] = 0
    back = stored.decode(stored.encode(given)).descriptors.features
    assert back.dtype == np.float32
    step = np.abs(given.descriptors.features).max(axis=1, keepdims=True) / 127
    # half a step, and the scale's own rounding to float16 (2^-11) on values up to 127 steps
    assert (np.abs(back - given.descriptors.features) <= step * (0.5 + 127 * 2**-11)).all()
    assert not back[2].any()


def test_int8_uses_the_whole_range():
    integers, scale = quantize(image(50, 64, np.float32).descriptors.features)
    assert (np.abs(integers).max(axis=1) >= 126).all()
    assert scale.dtype == np.float16


def test_bits_are_kept_as_they_are():
    bits = np.random.default_rng(0).integers(0, 256, (4, 16), dtype=np.uint8)
    stored = RecordFormat(5, 128, "bits")
    back = stored.decode(stored.encode(ImageRecord("a", 1, DescriptorSet(bits)))).descriptors
    np.testing.assert_array_equal(back.features[:4], bits)
    assert back.is_packed


def test_tfds_decodes_the_same():
    stored = RecordFormat(8, 16, "int8", ("weight",))
    data = stored.encode(image(5, weight=np.arange(5, dtype=np.float32)))
    theirs = stored.features.deserialize_example_np(data)
    ours = stored.decode(data)
    assert theirs["id"].decode() == ours.id
    assert theirs["count"] == 5
    np.testing.assert_array_equal(theirs["weight"], ours.descriptors.weight)
    np.testing.assert_array_equal(
        theirs["features"] * theirs["feature_scale"].astype(np.float32)[:, None], ours.descriptors.features
    )


def test_padding_between_real_rows_is_closed():
    valid = np.array([True, False, True, True, False])
    given = image(5, valid=valid)
    stored = RecordFormat(5, 16)
    back = stored.decode(stored.encode(given)).descriptors
    np.testing.assert_array_equal(back.features[:3], given.descriptors.features[valid])
    np.testing.assert_array_equal(back.valid, np.arange(5) < 3)


def test_an_image_without_descriptors_is_possible():
    stored = RecordFormat(4, 16)
    back = stored.decode(stored.encode(image(4, valid=np.zeros(4, bool)))).descriptors
    assert not back.valid.any()
    assert real_rows(back).count == 0


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_values_that_cannot_be_stored_name_image_and_row(dtype, value):
    given = image(5, dtype=np.float32)
    given.descriptors.features[3, 2] = value
    with pytest.raises(UserError, match=r"α/7.jpg: descriptor 3 holds NaN"):
        RecordFormat(5, 16, dtype).encode(given)


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"shape \(5, 16\), expected \[N, 32\]"):
        RecordFormat(5, 32).encode(image(5))
    with pytest.raises(UserError, match="uint8, which cannot be stored as float16"):
        RecordFormat(5, 16).encode(ImageRecord("a", 0, DescriptorSet(np.zeros((5, 16), np.uint8))))
    with pytest.raises(UserError, match="has no xy"):
        RecordFormat(5, 16, "float16", ("xy",)).encode(image(5))
    with pytest.raises(UserError, match="not one of float16, int8, bits"):
        RecordFormat(5, 16, "bfloat16")
    with pytest.raises(UserError, match="not a multiple of 8"):
        RecordFormat(5, 12, "bits")


@pytest.mark.parametrize(
    "stored", [RecordFormat(4, 8), RecordFormat(4, 8, "int8", ("xy",)), RecordFormat(4, 64, "bits")]
)
def test_format_is_read_back_from_the_features(stored):
    assert RecordFormat.of_features(stored.features) == stored
    assert dataclasses.asdict(stored)["descriptors"] == 4
