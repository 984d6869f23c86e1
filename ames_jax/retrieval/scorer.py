"""Pairs in, logits out: one query against its shortlist, or any pairs, in micro-batches, on all local devices."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int

from ames_jax.descriptors import AnyArray, DescriptorSet, validate
from ames_jax.model.ames import AMESConfig
from ames_jax.model.kinds import Config, Model
from ames_jax.model.packing import binarizer_fingerprint
from ames_jax.runtime import cache
from ames_jax.runtime.cores import refuse_fork, usable_cores
from ames_jax.runtime.devices import data_mesh
from ames_jax.runtime.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")
# Bytes of activations of one micro-batch on one device. On CPU they should stay in the cache; an accelerator needs many
# pairs to be busy, and this bounds its memory instead.
MICRO_BATCH_BYTES = {"cpu": 6_000_000}
MICRO_BATCH_BYTES_ON_ACCELERATOR = 6000 << 17


def micro_batch_size(queries: int, databases: int, backend: str, config: Config | None = None) -> int:
    """Pairs that one device scores at a time, for Q query and T database descriptors; config: of the model (None: AMES)."""
    fitting = MICRO_BATCH_BYTES.get(backend, MICRO_BATCH_BYTES_ON_ACCELERATOR)
    return max(1, round(fitting / (config or AMESConfig()).activation_bytes(queries, databases)))


def queries_at_a_time() -> int:
    """Queries that are scored at a time: on CPU one per core, since one program alone leaves cores waiting (1.5 to 2 times
    faster on two); elsewhere two, so that the next query is laid out while the device works."""
    return usable_cores() if jax.default_backend() == "cpu" else 2


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, first_alone: bool = True
) -> Iterator[Result]:
    """`work(item)` for every item, in their order, from so many threads.

    first_alone: nothing runs beside the first item, since threads that meet a new shape together would each compile it.
    """
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for place, item in enumerate(items):
                pending.append(pool.submit(work, item))
                while len(pending) > (threads if place or not first_alone else 0):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Scorer:
    """A model ready to score: parameters split off once and laid on the devices, functions compiled per shape.

    Args:
      model: the model; later changes to its parameters are not seen.
      micro_batch: pairs a device scores at a time; chosen from the shapes where None.

    Attributes:
      config: of the model; binarizer: its `packing.binarizer_fingerprint`, None for full precision.
    """

    def __init__(self, model: Model, micro_batch: int | None = None):
        cache.start()  # from Python, too, programs are compiled once
        self.config, self.micro_batch = model.config, micro_batch
        self.binarizer = None if model.config.bits is None else binarizer_fingerprint(model)
        self._mesh = data_mesh(jax.local_devices())
        self._process = os.getpid()
        self._graph, params = nnx.split(model)
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> Float32[np.ndarray, " K"]:
        """Logits of a query [Q, ·] against database images [K, T, ·]; the query's own work is done once.

        A set without a real descriptor is scored by the matching token (and the other side) alone.

        Raises:
          UserError: a width, mask or value that the model cannot take.
        """
        query, database = self._checked(query, 2, database)
        count = database.features.shape[0]
        if count == 0:
            return np.zeros(0, np.float32)
        batches, steps = self._micro_batches(database, count, query.count, database.count)
        replicated = jax.device_put(query, NamedSharding(self._mesh, PartitionSpec()))
        return np.asarray(_score_shortlist(self._graph, self._params, replicated, batches, steps)).reshape(-1)[:count]

    def pairs(self, query: DescriptorSet, database: DescriptorSet) -> Float32[np.ndarray, " B"]:
        """Logits of query [B, Q, ·] with database [B, T, ·], pair by pair; raises as `shortlist` does."""
        query, database = self._checked(query, 3, database)
        count = database.features.shape[0]
        if query.features.shape[0] != count:
            raise UserError(f"{query.features.shape[0]} queries for {count} database sets; pairs need equal numbers")
        if count == 0:
            return np.zeros(0, np.float32)
        batches, steps = self._micro_batches((query, database), count, query.count, database.count)
        return np.asarray(_score_pairs(self._graph, self._params, batches, steps)).reshape(-1)[:count]

    def shortlists(
        self, queries: DescriptorSet, database: DescriptorSet, shortlists: Int[np.ndarray, "Nq K"]
    ) -> Float32[np.ndarray, "Nq K"]:
        """Logits of queries [Nq, Q, ·] and their shortlists, rows of a database [N, T, ·] in memory."""

        def one(query: int) -> np.ndarray:
            return self.shortlist(queries[query], database[shortlists[query]])

        if not len(shortlists):
            return np.zeros(shortlists.shape, np.float32)
        return np.stack(list(in_threads(one, range(len(shortlists)), queries_at_a_time())))

    def _checked(
        self, query: DescriptorSet, query_axes: int, database: DescriptorSet
    ) -> tuple[DescriptorSet, DescriptorSet]:
        """Both sides as the model takes them; raises UserError."""
        refuse_fork(self._process, "a Scorer")
        width, bits = self.config.descriptor_width, self.config.bits
        return validate(query, width, bits, "query", query_axes), validate(database, width, bits, "database", 3)

    def _micro_batches(self, tree: Any, count: int, queries: int, databases: int) -> tuple[Any, int]:
        """Reshapes leading axes [count, …] to [capacity, micro-batch · devices, …] on the devices; and the steps to run.

        Both take few values so that few programs are compiled; the loop runs the real steps alone.
        """
        devices = self._mesh.size
        most = self.micro_batch or micro_batch_size(
            queries, databases, self._mesh.devices.flat[0].platform, self.config
        )
        # As few steps as need be, and the pairs spread evenly over them: else the last is mostly padding.
        fewest = -(-count // (devices * most))
        size = min(most, _few_values(-(-count // (devices * fewest)))) * devices
        steps = -(-count // size)
        capacity = _few_values(steps)

        def lay_out(field: AnyArray) -> jax.Array:
            field = np.asarray(field)
            padded = np.zeros((capacity * size, *field.shape[1:]), field.dtype)
            padded[:count] = field
            batches = padded.reshape(capacity, size, *field.shape[1:])
            return jax.device_put(batches, NamedSharding(self._mesh, PartitionSpec(None, "data")))

        return jax.tree.map(lay_out, _scored_fields(tree)), steps


def _few_values(count: int) -> int:
    """`count` rounded up so that an octave has 8 values: shapes that are padded to them are few, by at most an eighth."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


def _scored_fields(tree: Any) -> Any:
    """Only what the model reads travels to the device: features and validity."""
    is_set = lambda node: isinstance(node, DescriptorSet)  # noqa: E731
    return jax.tree.map(lambda s: DescriptorSet(s.features, s.valid), tree, is_leaf=is_set)


# Compiled per structure of the model, not per model: another scorer of the same structure costs no compilation.
@partial(jax.jit, static_argnums=0)
def _score_shortlist(
    graph: nnx.GraphDef, params: nnx.State, query: DescriptorSet, batches: DescriptorSet, steps: Int[Array, ""]
) -> Float32[Array, "capacity size"]:
    model = nnx.merge(graph, params)
    shared = model.share_query(query)
    return _loop(lambda part: model.logits(shared, part), batches, steps)


@partial(jax.jit, static_argnums=0)
def _score_pairs(
    graph: nnx.GraphDef, params: nnx.State, batches: tuple[DescriptorSet, DescriptorSet], steps: Int[Array, ""]
) -> Float32[Array, "capacity size"]:
    model = nnx.merge(graph, params)
    return _loop(lambda part: model.pair_logits(*part), batches, steps)


def _loop(score: Any, batches: Any, steps: Int[Array, ""]) -> Float32[Array, "capacity size"]:
    """Scores the first `steps` micro-batches of [capacity, size, …]; the rest of [capacity, size] stays 0."""
    capacity, size = jax.tree.leaves(batches)[0].shape[:2]

    def body(i: jax.Array, logits: jax.Array) -> jax.Array:
        part = jax.tree.map(lambda field: jax.lax.dynamic_index_in_dim(field, i, keepdims=False), batches)
        return jax.lax.dynamic_update_index_in_dim(logits, score(part), i, 0)

    return jax.lax.fori_loop(0, steps, body, jnp.zeros((capacity, size), jnp.float32))


def score_pairs(model: Model, query: DescriptorSet, database: DescriptorSet) -> Float32[np.ndarray, " B"]:
    """Logits of query [B, Q, ·] with database [B, T, ·]; see `Scorer`, which saves work when called often."""
    return Scorer(model).pairs(query, database)


def score_shortlist(model: Model, query: DescriptorSet, database: DescriptorSet) -> Float32[np.ndarray, " K"]:
    """Logits of one query [Q, ·] against [K, T, ·]; see `Scorer`, which saves work when called often."""
    return Scorer(model).shortlist(query, database)
