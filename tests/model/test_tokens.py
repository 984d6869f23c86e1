import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.tokens import Tokenizer, erf_sign, l2_normalise, straight_through_sign

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def tokenizer(bits=16, binarizer="straight_through"):
    options = {"dtype": jnp.dtype("float32"), "precision": jax.lax.Precision.HIGHEST, "rngs": nnx.Rngs(0)}
    return Tokenizer(24, 8, bits, binarizer=binarizer, sigma=1e-6, **options)


def test_straight_through_is_a_hard_sign_whose_gradient_passes():
    x = jnp.array([-2.0, 0.0, 1e-9])
    np.testing.assert_array_equal(straight_through_sign(x), [-1, -1, 1])
    np.testing.assert_array_equal(jax.grad(lambda v: (3 * straight_through_sign(v)).sum())(x), [3, 3, 3])


def test_erf_surrogate_has_a_gradient_only_near_zero():
    slope = jax.vmap(jax.grad(lambda x: erf_sign(x, 1e-6)))(jnp.array([0.0, 1e-3, 0.01]))
    np.testing.assert_allclose(slope[0], np.sqrt(2 / (np.pi * 1e-6)), rtol=1e-5)
    assert slope[1] > 100
    assert slope[2] < 1e-12


def test_l2_normalise_keeps_a_zero_vector():
    np.testing.assert_array_equal(l2_normalise(jnp.zeros((2, 3))), np.zeros((2, 3)))


@pytest.mark.parametrize("exponent", [-125, -67, -3, 0, 5, 70, 124])
def test_l2_normalise_is_the_same_at_any_scale(rng, exponent):
    x = rng.uniform(1, 2, (50, 24)).astype(np.float32)
    np.testing.assert_array_equal(l2_normalise(x * np.float32(2.0) ** exponent), l2_normalise(x))
    slope = jax.grad(lambda v: (l2_normalise(v) * x[::-1]).sum())(jnp.asarray(x))
    scaled = jax.grad(lambda v: (l2_normalise(v * np.float32(2.0**-9)) * x[::-1]).sum())(jnp.asarray(x))
    np.testing.assert_allclose(scaled, slope, rtol=1e-4, atol=1e-6)
    assert not jax.grad(lambda v: l2_normalise(v)[0, 0] * 0)(jnp.zeros((1, 3), jnp.float32)).any()


def test_stored_bits_give_the_same_tokens_as_floats(rng):
    model = tokenizer()
    floats = DescriptorSet(rng.standard_normal((3, 5, 24), dtype=np.float32))
    stored = model.binarize(floats)
    assert stored.features.shape == (3, 5, 2)
    assert stored.features.dtype == np.uint8
    np.testing.assert_array_equal(model(stored), model(floats))
    assert model.binarize(stored) is stored


def test_tokens_do_not_depend_on_the_length_of_a_descriptor(rng):
    x = rng.standard_normal((5, 24), dtype=np.float32)
    model = tokenizer(bits=None)
    np.testing.assert_allclose(model(DescriptorSet(7 * x)), model(DescriptorSet(x)), atol=1e-6)


def test_erf_is_a_hard_sign_at_test_time(rng):
    descriptors = DescriptorSet(rng.standard_normal((5, 24), dtype=np.float32))
    hard, soft = tokenizer(), tokenizer(binarizer="erf")
    np.testing.assert_array_equal(soft(descriptors), hard(descriptors))
    soft.sigma = 1e-1
    assert np.abs(soft(descriptors, train=True) - hard(descriptors)).max() > 1e-2


def test_full_precision_has_no_bits(rng):
    with pytest.raises(ValueError, match="no bits"):
        tokenizer(bits=None).binarize(DescriptorSet(np.zeros((2, 24), np.float32)))


def test_shapes_in_signatures_are_checked_here(rng):
    with pytest.raises(TypeCheckError, match="projections"):
        tokenizer().projections(rng.standard_normal(24, np.float32))
