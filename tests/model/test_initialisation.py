import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.initialisation import SHARPNESS, initialise, itq, whitened_tokens, whitening
from ames_jax.runtime.errors import UserError

SHAPE = {"descriptor_width": 24, "model_width": 16, "layers": 2, "feed_forward": 32}


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((3000, 24)) @ rng.standard_normal((24, 24)) + 0.5
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def test_whitening_gives_unit_variance_without_correlation(sample):
    mean, kernel = whitening(sample, 8)
    covariance = np.cov(((sample - mean) @ kernel).T)
    np.testing.assert_allclose(covariance, np.eye(8), atol=0.05)


def test_whitening_of_narrow_descriptors_leaves_columns_empty(sample):
    _, kernel = whitening(sample[:, :5], 8)
    assert kernel.shape == (5, 8)
    assert not kernel[:, 5:].any()


def test_itq_bits_keep_neighbours_better_than_random_hyperplanes(sample):
    planes = itq(sample, 24, whiten=False, seed=0)
    np.testing.assert_allclose(np.linalg.norm(planes, axis=0), 1, rtol=1e-5)
    random = np.random.default_rng(0).standard_normal((24, 24))
    cosine = (sample[:200] @ sample[200:600].T).ravel()

    def agreement(w):
        signs = np.sign(sample @ w)
        return np.corrcoef((signs[:200] @ signs[200:600].T).ravel(), cosine)[0, 1]

    assert agreement(planes) > agreement(random) + 0.01
    np.testing.assert_array_equal(planes, itq(sample, 24, whiten=False, seed=0))


def test_itq_cannot_give_more_bits_than_dimensions(sample):
    with pytest.raises(UserError, match="32 bits from descriptors of width 24"):
        itq(sample, 32, whiten=True, seed=0)


def test_matching_start_whitens_and_makes_attention_match(sample):
    model = AMES(AMESConfig(**SHAPE), nnx.Rngs(0))
    initialise(model, "matching", sample, None, seed=0)
    np.testing.assert_allclose(
        model.tokenizer(DescriptorSet(jnp.asarray(sample[:50]))), whitened_tokens(sample, 16)[:50], atol=1e-3
    )
    cross = model.layers[1].cross_attention
    diagonal = np.diag(np.asarray(cross.qkv.kernel[...][:, :16]))
    assert abs(diagonal.mean() - SHARPNESS) < 0.1
    assert np.diag(np.asarray(cross.out.kernel[...])).mean() < -0.4
    assert abs(np.diag(np.asarray(model.layers[1].self_attention.out.kernel[...])).mean()) < 0.05


def test_release_start_changes_the_binarizer_alone(sample):
    config = AMESConfig(**SHAPE, bits=16)
    model, fresh = AMES(config, nnx.Rngs(0)), AMES(config, nnx.Rngs(0))
    initialise(model, "release", sample, None, seed=0)
    np.testing.assert_array_equal(model.layers[0].expand.kernel[...], fresh.layers[0].expand.kernel[...])
    np.testing.assert_array_equal(model.tokenizer.remap.kernel[...], fresh.tokenizer.remap.kernel[...])
    assert np.abs(model.tokenizer.hyperplanes[...] - fresh.tokenizer.hyperplanes[...]).max() > 0.1


def test_a_student_starts_near_its_teacher(sample):
    teacher = AMES(AMESConfig(**SHAPE), nnx.Rngs(0))
    initialise(teacher, "matching", sample, None, seed=0)
    student = AMES(AMESConfig(**SHAPE, bits=24), nnx.Rngs(5))
    initialise(student, "matching", sample, teacher, seed=0)
    np.testing.assert_array_equal(student.layers[1].expand.kernel[...], teacher.layers[1].expand.kernel[...])
    np.testing.assert_array_equal(student.matching_token[...], teacher.matching_token[...])
    held_out = DescriptorSet(jnp.asarray(sample[:500]))
    error = np.square(student.tokenizer(held_out) - teacher.tokenizer(held_out)).mean()
    unrelated = np.square(student.tokenizer(held_out) - np.roll(teacher.tokenizer(held_out), 1, axis=0)).mean()
    assert error < 0.5 * unrelated


def test_a_student_weighs_matches_of_its_own_bits(sample):
    """Cosines of a teacher's floats lie elsewhere than those of bits."""
    learned = {"match_learned": True, "match_form": "mutual"}
    teacher = AMES(AMESConfig(**SHAPE, **learned, match_weight=3.0, match_threshold=0.7), nnx.Rngs(0))
    student = AMES(AMESConfig(**SHAPE, **learned, bits=16, match_weight=2.0, match_threshold=0.5), nnx.Rngs(1))
    initialise(student, "matching", sample, teacher, seed=0)
    assert (float(student.match_weight[...]), float(student.match_threshold[...])) == (2.0, 0.5)
    np.testing.assert_array_equal(student.matching_token[...], teacher.matching_token[...])


def test_a_teacher_of_another_size_is_refused(sample):
    teacher = AMES(AMESConfig(**{**SHAPE, "layers": 1}), nnx.Rngs(0))
    student = AMES(AMESConfig(**SHAPE, bits=24), nnx.Rngs(5))
    with pytest.raises(UserError, match="the teacher has layers 1"):
        initialise(student, "matching", sample, teacher, seed=0)


def test_unknown_starts_are_refused(sample):
    with pytest.raises(UserError, match="'matching' or 'release', found 'random'"):
        initialise(AMES(AMESConfig(**SHAPE), nnx.Rngs(0)), "random", sample, None, seed=0)
