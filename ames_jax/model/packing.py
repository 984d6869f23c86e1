"""Float descriptors to stored bits, so that a descriptor gets the same bits wherever and in whatever batch it is packed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.descriptors import DescriptorSet, pack_bits, validate
from ames_jax.model.kinds import Model
from ames_jax.runtime.errors import UserError

BLOCK_ROWS = 64
BLOCKS_PER_CALL = 64


class BitPacker:
    """The binarizer of a binary model, for stores and evaluation.

    A projection close to zero can change its sign with the shape of the matrix product that computes it. So every image
    is cut into blocks of 64 descriptors, from the strongest on, and each block is projected by itself: the bits of a
    descriptor depend on its image alone, not on how many descriptors or images are asked for.

    Raises UserError for a full-precision model.
    """

    def __init__(self, model: Model):
        self.config = model.config
        if self.config.bits is None:
            raise UserError("a full-precision model has no bits to store; give a binary model (…_dist)")
        self.bits, self.fingerprint = self.config.bits, binarizer_fingerprint(model)
        self._hyperplanes = np.asarray(model.tokenizer.hyperplanes[...], np.float32)
        graph, state = nnx.split(model.tokenizer)

        def project(blocks: jax.Array) -> jax.Array:
            tokenizer = nnx.merge(graph, state)
            return jax.lax.map(lambda block: tokenizer.projections(block) > 0, blocks)

        self._project = jax.jit(project)

    def directions(self, features: np.ndarray) -> np.ndarray:
        """Projections of descriptors [N, D] onto the hyperplanes, float32 [N, bits] of length 1: what the bits are signs of."""
        features = np.asarray(features, np.float32)
        projected = features @ self._hyperplanes
        return projected / np.maximum(np.linalg.norm(projected, axis=-1, keepdims=True), 1e-12)

    def pack(self, descriptors: DescriptorSet, name: str = "descriptors") -> DescriptorSet:
        """The set [n, T, D] with bits uint8 [n, T, bits / 8] for features; bits stay as they are. Padding gets zeros.

        Raises UserError, naming `name`, for another width, NaN or infinity.
        """
        descriptors = validate(descriptors, self.config.descriptor_width, self.config.bits, name, axes=3)
        if descriptors.is_packed:
            return descriptors
        images, count, width = descriptors.features.shape
        blocks_per_image = -(-count // BLOCK_ROWS)
        padded = np.zeros((images, blocks_per_image * BLOCK_ROWS, width), descriptors.features.dtype)
        padded[:, :count] = descriptors.features
        positive = self._positive(padded.reshape(-1, BLOCK_ROWS, width))
        bits = positive.reshape(images, blocks_per_image * BLOCK_ROWS, self.bits)[:, :count]
        if descriptors.valid is not None:
            bits = bits & np.asarray(descriptors.valid)[..., None]
        return replace(descriptors, features=pack_bits(bits))

    def _positive(self, blocks: np.ndarray) -> np.ndarray:
        """bool [n, 64, bits] of blocks [n, 64, D], in calls of one shape so that one program is compiled."""
        positive = np.empty((*blocks.shape[:2], self.config.bits), bool)
        for start in range(0, len(blocks), BLOCKS_PER_CALL):
            part = blocks[start : start + BLOCKS_PER_CALL]
            call = np.zeros((BLOCKS_PER_CALL, *blocks.shape[1:]), np.float32)
            call[: len(part)] = part
            positive[start : start + len(part)] = np.asarray(self._project(jnp.asarray(call)))[: len(part)]
        return positive


def binarizer_fingerprint(model: Model) -> str:
    """A hash of a model's hyperplanes (32 hexadecimal digits), by which stored bits belong to it."""
    hyperplanes = np.ascontiguousarray(np.asarray(model.tokenizer.hyperplanes[...], np.float32))
    return hashlib.sha256(repr(hyperplanes.shape).encode() + hyperplanes.tobytes()).hexdigest()[:32]
