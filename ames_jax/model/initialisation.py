"""Initial values: the release's initial values, or matching-aware ones that start attention as descriptor matching.

Matching-aware initialisation is ours, and nothing but other initial values of the same parameters: the input projection
whitens the descriptors (PCA), cross-attention starts as matching (query and key projections near a multiple of the
identity) and passes on a token minus its match (value near the identity, output near a negative multiple of it). A binary
student starts from its teacher's transformer, with bits from whitened ITQ and a remap fitted to the teacher's tokens.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES
from ames_jax.model.attention import Attention
from ames_jax.model.kinds import Model
from ames_jax.model.matches import Matching, MatchingConfig
from ames_jax.runtime.errors import UserError

SHARPNESS = 1.2  # of the identity in the query and key projections of cross-attention
RANDOM_SHARE = 0.2  # of the usual random values that stays beside the identity
DIFFERENCE = -0.5  # of the identity in the output projection: a token minus its match
EIGENVALUE_FLOOR = 1e-3  # of the largest, added before the square root, so that whitening does not blow up noise
RIDGE = 1e-2  # of the least-squares fit from bits to tokens
ITQ_ROUNDS = 30
SAMPLE, SAMPLE_PER_IMAGE = 30_000, 48  # descriptors that whitening and ITQ are learned from
# Settings that a student shares with its teacher.
SAME_SIZE = ("model_width", "heads", "layers", "feed_forward", "pre_norm", "vote_width", "head_width")


def initialise(model: Model, how: str, descriptors: np.ndarray, teacher: Model | None, seed: int) -> None:
    """Sets the initial values of a fresh model in place.

    Args:
      how: "matching" (ours, above) or "release" (as the constructor left it, but for a binarizer, which starts from ITQ).
      descriptors: float [n, D], a sample of the training descriptors, tens of thousands.
      teacher: the trained teacher of a binary student, of which "matching" copies all but the tokenizer; None: no teacher.
      seed: of ITQ's first rotation.

    Raises:
      UserError: for another `how`, or a teacher of another shape.
    """
    if how not in ("matching", "release"):
        raise UserError(f"init must be 'matching' or 'release', found {how!r}")
    x = _normalise(np.asarray(descriptors, np.float32))
    tokenizer, bits = model.tokenizer, model.config.bits
    if bits is not None:
        tokenizer.hyperplanes[...] = jnp.asarray(itq(x, bits, whiten=how == "matching", seed=seed))
    if how == "release":
        return
    if teacher is not None:
        copy_rest(teacher, model)
    elif isinstance(model, AMES):
        for layer in model.layers:
            _start_as_matching(layer.cross_attention)
    targets = whitened_tokens(x, model.config.model_width) if teacher is None else np.asarray(_tokens(teacher, x))
    if bits is None:
        mean, kernel = whitening(x, model.config.model_width)
        tokenizer.remap.kernel[...] = jnp.asarray(kernel)
        tokenizer.remap.bias[...] = jnp.asarray(-mean @ kernel)
    else:
        signs = np.where(x @ np.asarray(tokenizer.hyperplanes[...]) > 0, 1, -1).astype(np.float32)
        gram = signs.T @ signs + RIDGE * len(signs) * np.eye(bits, dtype=np.float32)
        tokenizer.remap.kernel[...] = jnp.asarray(np.linalg.solve(gram, signs.T @ targets))


def learned_matching(descriptors: np.ndarray, bits: int) -> Matching:
    """Hand-made matching whose bits are learned from a sample of descriptors, float [n, D], by whitened ITQ.

    Raises UserError for more bits than descriptor dimensions.
    """
    x = _normalise(np.asarray(descriptors, np.float32))
    # Fewer bits are alike by chance more often: of 300 × 256 descriptors some are above 0.5 in any two pictures.
    model = Matching(MatchingConfig(x.shape[1], bits, threshold=0.5 if bits >= 64 else 0.6), nnx.Rngs(0))
    model.tokenizer.hyperplanes[...] = jnp.asarray(itq(x, bits, whiten=True, seed=0))
    return model


def copy_rest(teacher: Model, student: Model) -> None:
    """Gives the student all of the teacher but the tokenizer and what weighs matches, which of bits are others than of floats.

    Raises UserError for models of different sizes.
    """
    same = [name for name in SAME_SIZE if hasattr(student.config, name)]
    other = [
        f"{n} {getattr(teacher.config, n)}" for n in same if getattr(teacher.config, n) != getattr(student.config, n)
    ]
    if other:
        raise UserError(f"the teacher has {', '.join(other)}, the student has not: both must be of one size")
    parameters = nnx.to_flat_state(nnx.state(teacher, nnx.Param))
    own = ("tokenizer", "match_weight", "match_threshold")
    nnx.update(student, nnx.from_flat_state([(path, value) for path, value in parameters if path[0] not in own]))


def whitening(x: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """PCA whitening of rows x [n, D]: mean [D] and kernel [D, width]; columns past D directions stay 0."""
    mean = x.mean(0)
    eigenvalues, vectors = np.linalg.eigh(np.cov((x - mean).T.astype(np.float64)))
    order = np.argsort(-eigenvalues)[:width]
    scale = np.sqrt(eigenvalues[order] + EIGENVALUE_FLOOR * eigenvalues.max())
    kernel = np.zeros((x.shape[1], width), np.float32)
    kernel[:, : len(order)] = vectors[:, order] / scale
    return mean, kernel


def whitened_tokens(x: np.ndarray, width: int) -> np.ndarray:
    """LayerNorm of the whitened rows [n, width]: the tokens that a matching-aware full-precision model starts with."""
    mean, kernel = whitening(x, width)
    projected = (x - mean) @ kernel
    centred = projected - projected.mean(1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(1, keepdims=True) + 1e-5)


def itq(x: np.ndarray, bits: int, whiten: bool, seed: int) -> np.ndarray:
    """Hyperplanes [D, bits] of iterative quantization: PCA, then the rotation that brings rows x [n, D] closest to signs.

    Gong and Lazebnik, CVPR 2011. Columns have length 1. No mean is taken off: the model has none at this place.

    Raises:
      UserError: more bits than descriptor dimensions.
    """
    if bits > x.shape[1]:
        raise UserError(f"{bits} bits from descriptors of width {x.shape[1]}: ITQ gives at most one bit per dimension")
    eigenvalues, vectors = np.linalg.eigh((x.T @ x / len(x)).astype(np.float64))
    order = np.argsort(-eigenvalues)[:bits]
    scale = np.sqrt(eigenvalues[order] + EIGENVALUE_FLOOR * eigenvalues.max()) if whiten else 1.0
    directions = vectors[:, order] / scale
    projected = x @ directions
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    for _ in range(ITQ_ROUNDS):
        left, _, right = np.linalg.svd(np.where(projected @ rotation > 0, 1.0, -1.0).T @ projected)
        rotation = (left @ right).T
    hyperplanes = directions @ rotation
    return (hyperplanes / np.linalg.norm(hyperplanes, axis=0)).astype(np.float32)


def _start_as_matching(attention: Attention) -> None:
    width = attention.qkv.in_features
    eye = jnp.eye(width)
    kernel = RANDOM_SHARE * attention.qkv.kernel[...]
    identity = jnp.concatenate([SHARPNESS * eye, SHARPNESS * eye, eye], axis=1)
    attention.qkv.kernel[...] = kernel + identity
    attention.out.kernel[...] = attention.out.kernel[...] + DIFFERENCE * eye


def _tokens(model: Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(model.tokenizer(DescriptorSet(jnp.asarray(x))))


def _normalise(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
