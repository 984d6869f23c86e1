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
from jaxtyping import Array, Float, Float32, Int

from ames_jax.descriptors import AnyArray, DescriptorSet, validate
from ames_jax.model.ames import AMESConfig
from ames_jax.model.elvis import ELViS
from ames_jax.model.kinds import Config, Model
from ames_jax.model.packing import binarizer_fingerprint
from ames_jax.runtime import cache
from ames_jax.runtime.cores import refuse_fork, usable_cores
from ames_jax.runtime.devices import data_mesh
from ames_jax.runtime.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")
ROWS_PER_CALL = 4096  # descriptors that are projected at a time
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

    Raises:
      UserError: `model` is none.

    Attributes:
      keeps_vectors: the model projects every database descriptor by itself, and may score what is kept of that (`vectors`).
      config: of the model; binarizer: its `packing.binarizer_fingerprint`, None for full precision.
    """

    def __init__(self, model: Model, micro_batch: int | None = None):
        if not isinstance(model, Model):
            raise UserError(f"expected a model, as load_model gives it, found {type(model).__name__}")
        cache.start()  # from Python, too, programs are compiled once
        self.config, self.micro_batch = model.config, micro_batch
        self.binarizer = None if model.config.bits is None else binarizer_fingerprint(model)
        self.keeps_vectors = isinstance(model, ELViS) and model.config.bits is None
        self._mesh = data_mesh(jax.local_devices())
        self._process = os.getpid()
        self._graph, params = nnx.split(model)
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def vectors(self, database: DescriptorSet) -> DescriptorSet:
        """Database images [n, T, ·] as the vectors [n, T, d] that a full-precision ELViS stores, for `shortlist`.

        A descriptor's vector does not depend on what else is asked for: all are projected in blocks of one size.

        Raises UserError: a width, mask or value that the model cannot take.
        """
        refuse_fork(self._process, "a Scorer")
        database = validate(database, self.config.descriptor_width, None, "database", 3)
        rows = np.asarray(database.features).reshape(-1, database.features.shape[-1])
        padded = np.zeros((-(-len(rows) // ROWS_PER_CALL) * ROWS_PER_CALL, rows.shape[1]), rows.dtype)
        padded[: len(rows)] = rows
        starts = range(0, max(1, len(padded)), ROWS_PER_CALL)
        parts = [_vectors(self._graph, self._params, padded[start : start + ROWS_PER_CALL]) for start in starts]
        vectors = np.concatenate([np.asarray(part) for part in parts])[: len(rows)]
        return DescriptorSet(vectors.reshape(*database.features.shape[:-1], vectors.shape[-1]), database.valid)

    def shortlist(
        self, query: DescriptorSet, database: DescriptorSet, vectors: bool = False
    ) -> Float32[np.ndarray, " K"]:
        """Logits of a query [Q, ·] against database images [K, T, ·]; the query's own work is done once.

        A set without a real descriptor is scored by the matching token (and the other side) alone. vectors: the images are
        what the method `vectors` made of them.

        Raises:
          UserError: a width, mask or value that the model cannot take.
        """
        query, database = self._checked(query, 2, database, vectors)
        count = database.features.shape[0]
        if count == 0:
            return np.zeros(0, np.float32)
        batches, steps = self._micro_batches(database, count, query.count, database.count)
        replicated = jax.device_put(query, NamedSharding(self._mesh, PartitionSpec()))
        logits = _score_shortlist(self._graph, vectors, self._params, replicated, batches, steps)
        return np.asarray(logits).reshape(-1)[:count]

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
        if not len(shortlists):
            return np.zeros(shortlists.shape, np.float32)
        stored = self.vectors(database) if self.keeps_vectors else database

        def one(query: int) -> np.ndarray:
            return self.shortlist(queries[query], stored[shortlists[query]], self.keeps_vectors)

        return np.stack(list(in_threads(one, range(len(shortlists)), queries_at_a_time())))

    def _checked(
        self, query: DescriptorSet, query_axes: int, database: DescriptorSet, vectors: bool = False
    ) -> tuple[DescriptorSet, DescriptorSet]:
        """Both sides as the model takes them; raises UserError."""
        refuse_fork(self._process, "a Scorer")
        width, bits = self.config.descriptor_width, self.config.bits
        stored = self.config.model_width if vectors else width
        return validate(query, width, bits, "query", query_axes), validate(database, stored, bits, "database", 3)

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
@partial(jax.jit, static_argnums=(0, 1))
def _score_shortlist(
    graph: nnx.GraphDef,
    vectors: bool,
    params: nnx.State,
    query: DescriptorSet,
    batches: DescriptorSet,
    steps: Int[Array, ""],
) -> Float32[Array, "capacity size"]:
    model = nnx.merge(graph, params)
    shared = model.share_query(query)
    score = model.logits_of_vectors if vectors else model.logits
    return _loop(lambda part: score(shared, part), batches, steps)


@partial(jax.jit, static_argnums=0)
def _vectors(graph: nnx.GraphDef, params: nnx.State, rows: Float[AnyArray, "n D"]) -> Float[Array, "n d"]:
    return nnx.merge(graph, params).stored_vectors(DescriptorSet(rows))


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
