"""A batch of triplets on the devices: its pairs, what counts in it, and its parts."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ames_jax.descriptors import DescriptorSet
from ames_jax.retrieval.scorer import micro_batch_size
from ames_jax.runtime.devices import BATCH_AXIS, EVERYWHERE

Rows = tuple[int, int]  # padded numbers of query and database descriptors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TripletArrays:
    """The arrays of one batch of B triplets, each DescriptorSet [B, K, ·]; `lengths` int32 [2]: query, database.

    K is the full length, which the teacher sees; a step cuts the arrays to its bucket and masks the rest. `real` is bool
    [B], False for triplets that only fill the batch up to a number that devices can share, or None where all count.
    """

    anchor: DescriptorSet
    positive: DescriptorSet
    negative: DescriptorSet
    lengths: jax.Array
    real: jax.Array | None = None


# A batch on the devices: arrays are split along their first axis, the lengths are everywhere.
BATCH_AXES = TripletArrays(BATCH_AXIS, BATCH_AXIS, BATCH_AXIS, EVERYWHERE, BATCH_AXIS)


def pairs(batch: TripletArrays) -> tuple[DescriptorSet, DescriptorSet]:
    """The 2B pairs of a batch, [2B, K, ·] per side: (a₀, p₀), (a₀, n₀), (a₁, p₁), …

    Pairs of a triplet stay neighbours so that a batch split over devices needs no exchange.
    """
    query = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), batch.anchor)
    interleave = lambda p, n: jnp.stack([p, n], axis=1).reshape(-1, *p.shape[1:])  # noqa: E731
    return query, jax.tree.map(interleave, batch.positive, batch.negative)


def shorten(descriptors: DescriptorSet, length: jax.Array) -> DescriptorSet:
    """Marks the rows at and past `length` (a scalar on the device) as padding."""
    kept = jnp.arange(descriptors.features.shape[-2]) < length
    kept = jnp.broadcast_to(kept, descriptors.features.shape[:-1])
    valid = kept if descriptors.valid is None else kept & descriptors.valid
    return DescriptorSet(descriptors.features, valid)


def parts_of(triplets: int, rows: Rows, at_least: int, platform: str) -> int:
    """Parts in which a device takes its `triplets` at `rows` descriptors per side: `at_least`, and on CPU more.

    On CPU the activations of a part should stay in the cache, as in scoring; elsewhere small parts leave a device idle.
    """
    if platform != "cpu":
        return at_least
    fitting, share = micro_batch_size(*rows, platform) // 2, triplets // at_least
    return triplets // max(size for size in range(1, share + 1) if share % size == 0 and size <= max(1, fitting))


def split_parts(batch: TripletArrays, parts: int) -> dict[str, Any]:
    """The fields of a batch that have a batch axis, [B, …] as [parts, B / parts, …]."""
    sets = {name: getattr(batch, name) for name in ("anchor", "positive", "negative", "real")}
    return jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), sets)


class Totals(NamedTuple):
    """Divisors of a step's losses: real pairs, and tokens that count in the token loss (float32 scalars)."""

    pairs: jax.Array
    tokens: jax.Array


def real_pairs(batch: TripletArrays) -> jax.Array:
    """bool [2B]: the pairs that count."""
    triplets = batch.anchor.features.shape[0]
    return jnp.ones(2 * triplets, bool) if batch.real is None else jnp.repeat(batch.real, 2)


def kept_tokens(batch: TripletArrays, rows: Rows, padding: bool) -> jax.Array:
    """bool [2B, 1 + Q + T]: the tokens that count in the token loss; with `padding`, also padding below the drawn length."""
    sides = [side.truncate(count) for side, count in zip(pairs(batch), rows)]
    if padding:
        sides = [DescriptorSet(side.features) for side in sides]
    kept = [shorten(side, length).valid for side, length in zip(sides, batch.lengths)]
    first = jnp.ones((kept[0].shape[0], 1), bool)
    return jnp.concatenate([first, *kept], axis=1) & real_pairs(batch)[:, None]


def count_totals(batch: TripletArrays, rows: Rows, padding: bool) -> Totals:
    """The totals of a batch (or of a share of one: they add up)."""
    counts = real_pairs(batch), kept_tokens(batch, rows, padding)
    return Totals(*(jnp.sum(count, dtype=jnp.float32) for count in counts))
