"""Reasons why an image was found: correspondences with the query in AMES's cross-attention or ELViS's transport plan."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ames_jax.descriptors import DescriptorSet, stack
from ames_jax.extraction.images import load_image
from ames_jax.index.searcher import Searcher
from ames_jax.index.shortlist_scoring import Hit, ranked
from ames_jax.model.ames import AMES
from ames_jax.model.attention import CrossWeights
from ames_jax.model.elvis import ELViS
from ames_jax.model.kinds import kind_of
from ames_jax.model.matches import Matching
from ames_jax.model.packing import BitPacker
from ames_jax.runtime.errors import UserError

# Share of an image's descriptors that must have the stored bits again: networks round differently from device to device.
SAME_PICTURE = 0.9


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A query, an image, and the descriptors that connect them.

    Attributes:
      query: name of the query's file; query_image, image: RGB uint8 [H, W, 3].
      hit: the image's id and scores; lam, gamma: λ and γ of its score.
      query_xy [Q, 2], xy [T, 2]: positions of the descriptors as a share of width and height.
      pairs: int [P, 2], query and image descriptor of each correspondence, the strongest first; strengths: float [P].
      query_attention [Q], attention [T]: the matching token's attention to each descriptor in the last layer; of ELViS the
        largest share of each descriptor, which its vote comes from; of hand-made matching, cosines above the threshold.
      kind: of the model, a key of `kinds.KINDS`.
    """

    query: str
    query_image: np.ndarray
    image: np.ndarray
    hit: Hit
    lam: float
    gamma: float
    query_xy: np.ndarray
    xy: np.ndarray
    pairs: np.ndarray
    strengths: np.ndarray
    query_attention: np.ndarray
    attention: np.ndarray
    kind: str = "ames"


def explain(searcher: Searcher, query: Path | np.ndarray, image_id: str, pictures: Path | None = None) -> Explanation:
    """Explains the score of an indexed image for a query picture, a file or RGB uint8 [H, W, 3].

    The index stores no positions, so the image's descriptors are extracted again from its picture; the score is that of
    the stored bits. pictures: folder of the index's pictures, where they have moved.

    Raises UserError: an id that the index does not hold; a picture that is gone, or no longer the one that was indexed.
    """
    index = searcher.index
    row = int(index.rows([image_id])[0])
    path = index.picture_path(row, pictures)
    name, picture = ("", query) if isinstance(query, np.ndarray) else (query.name, load_image(query))
    images = [picture, load_image(path)]
    asking, asked_for = searcher.extract(images)
    local = asking.local.truncate(searcher.query_descriptors)
    stored = index.read(np.array([row]))[0]
    stored = DescriptorSet(stored.features[stored.valid])
    again = asked_for.local.truncate(stored.count)
    _refuse_another_picture(searcher.packer, stored, again, path)
    # Of one shape, so that one program is compiled for all pairs of images.
    query_set = stack([DescriptorSet(local.features, np.ones(local.count, bool))], searcher.query_descriptors)
    database = stack([DescriptorSet(stored.features, np.ones(stored.count, bool))], index.facts["descriptors"])
    logit, seen = _look(*nnx.split(index.model), query_set, database)
    similarity = np.array([asking.global_descriptor @ asked_for.global_descriptor], np.float32)
    [hit] = ranked([image_id], np.array([row]), similarity, np.asarray(logit), searcher.lam, searcher.gamma)
    if not isinstance(index.model, AMES):
        plan = np.asarray(seen)[0, : local.count, : stored.count]
        pairs, strengths = strongest_pairs(plan)
        attention = plan.max(axis=1, initial=0), plan.max(axis=0, initial=0)
    else:
        weights = [_without_padding(layer, local.count, stored.count) for layer in seen]
        pairs, strengths = correspondences(weights)
        last = np.asarray(weights[-1].matching[0].mean(axis=0))
        attention = last[: local.count], last[local.count + 1 :]
    setting, kind = (searcher.lam, searcher.gamma), kind_of(index.model.config)
    return Explanation(name, *images, hit, *setting, local.xy, again.xy, pairs, strengths, *attention, kind)


@partial(jax.jit, static_argnums=0)
def _look(
    graph: nnx.GraphDef, params: nnx.State, query: DescriptorSet, database: DescriptorSet
) -> tuple[jax.Array, list[CrossWeights] | jax.Array]:
    """The logit, and the cross-attention's weights (AMES), the transport plan [1, Q, T] (ELViS), or what cosines are above the
    threshold (hand-made matching)."""
    model = nnx.merge(graph, params)
    if isinstance(model, ELViS):
        found = model(query, database)
        return found.logit, found.plan
    if isinstance(model, Matching):
        found = model(query, database)
        return found.logit, jnp.maximum(found.cosines - model.config.threshold, 0)
    return model.pair_logits(query, database), model.cross_weights(query, database)


def _without_padding(layer: CrossWeights, queries: int, images: int) -> CrossWeights:
    """The weights between the first `queries` and `images` descriptors of the two sides."""
    padded = layer.query.shape[2]
    of_query = np.asarray(layer.query)[:, :, :queries, : 1 + images]
    matching, database = np.asarray(layer.matching), np.asarray(layer.database)
    keys = [*range(queries), *range(padded, padded + 1 + images)]
    return CrossWeights(of_query, matching[..., keys], database[:, :, :images, keys[: queries + 1]])


def correspondences(weights: list[CrossWeights]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of descriptors that look at each other: int [P, 2] and strength float [P] in 0..1, falling.

    The strength of query descriptor i and image descriptor j is the geometric mean of i's attention to j and j's to i,
    averaged over heads and layers. Pairs that are each other's strongest are kept. weights: of one pair of images.
    """
    queries = weights[0].query.shape[2]
    strength = np.zeros((queries, weights[0].database.shape[2]), np.float32)
    for layer in jax.tree.map(np.asarray, weights):
        towards, back = layer.query[0, :, :, 1:], layer.database[0, :, :, :queries]
        strength += np.sqrt(towards * back.transpose(0, 2, 1)).mean(axis=0) / len(weights)
    return strongest_pairs(strength)


def strongest_pairs(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a matrix [Q, T] that are each other's strongest, above 0: int [P, 2] and strength [P], falling."""
    if not strength.size:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    best = strength.argmax(axis=1)
    mutual = np.flatnonzero(strength.argmax(axis=0)[best] == np.arange(len(strength)))
    pairs = np.stack([mutual, best[mutual]], axis=1)
    values = strength[pairs[:, 0], pairs[:, 1]]
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > 0]
    return pairs[order], values[order]


def _refuse_another_picture(packer: BitPacker, stored: DescriptorSet, again: DescriptorSet, path: Path) -> None:
    same = 0.0
    if again.count == stored.count:
        bits = packer.pack(DescriptorSet(again.features[None])).features[0]
        same = float((bits == stored.features).all(axis=1).mean()) if stored.count else 1.0
    if same < SAME_PICTURE:
        raise UserError(f"{path}: not the picture that was indexed ({same:.0%} of its descriptors are); index it again")
