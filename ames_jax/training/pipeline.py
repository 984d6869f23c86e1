"""Training batches: triplets of images read at random by Grain, the same whatever the number of hosts and workers."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from etils import epy

from ames_jax.data.records import ImageRecord
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.cores import end_with_parent
from ames_jax.runtime.errors import UserError, requires
from ames_jax.training.batch import BATCH_AXES, TripletArrays
from ames_jax.training.triplets import Triplets

with epy.lazy_imports():  # does not exist for Windows, where all but training works
    import grain

T = TypeVar("T")
ROLES = 3
# Far more steps than any run takes: Grain wants a length.
STEPS = 2**40
# Keep the streams of the lengths and the augmentation apart from the triplets' where the seeds are equal.
LENGTHS, AUGMENTATION = 1, 2


@dataclasses.dataclass(frozen=True)
class TripletBatch:
    """A training step's batch, or one process's part of it while its arrays are NumPy's.

    Attributes:
      arrays: features [B, K, D] in the pipeline's dtype, or packed bits uint8, with valid [B, K]; lengths; what is real.
      lengths: descriptors that the query and the database images are cut to in this step, as in `arrays`.
      ids: int64 [B, 3], rows of this process's images.
      step: the step this batch belongs to.
    """

    arrays: TripletArrays
    lengths: tuple[int, int]
    ids: np.ndarray
    step: int


@dataclasses.dataclass(frozen=True)
class TripletPipeline:
    """Batches of triplets, each a pure function of (seed, step), so that a step number is all there is to restore.

    Step s is batch s mod `steps_per_epoch` of epoch s div `steps_per_epoch`. Triplets that are left over at the end of an
    epoch, fewer than a batch, are dropped; the next epoch has another order. Every process reads its contiguous part of the
    same global batch, so all have the same number of steps however the records lie in shards.

    Attributes:
      source: images, read at random from several threads, and pickled for workers; row i is row i of the triplets' labels.
      triplets: the rows of images that form triplets.
      batch: triplets of a step over all processes.
      lengths: (low, high): both lengths of a step are drawn uniformly from [low, high).
      seed: of lengths and augmentation; the triplets have their own.
      descriptors: K, descriptors delivered of each image; None for all that the source has.
      dtype: float16 or float32; None for the source's own, which is fastest. Packed bits stay uint8.
      process, processes: the part of a batch, and the number of parts.
      drop: share of an image's descriptors that are left out at random, as if another detector had not found them.
      noise: length of a random vector that is added to a descriptor, in shares of the descriptor's own length.
      workers: processes that read and decode; 0 reads in threads, which is faster on few cores and for small sets.
      threads: batches that are read at the same time, in this process or in each worker.
      prefetch: batches held ready or being read, in this process or in each worker.
      multiple: a batch is filled up to a multiple of this, since all devices must get the same number of triplets, with
        copies of its last triplet, which do not count (`TripletArrays.real`).
    """

    source: Sequence[ImageRecord]
    triplets: Triplets
    batch: int
    lengths: tuple[int, int]
    seed: int = 0
    descriptors: int | None = None
    dtype: Any = None
    process: int = 0
    processes: int = 1
    drop: float = 0.0
    noise: float = 0.0
    workers: int = 0
    threads: int = 2
    prefetch: int = 2
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.filled % self.processes:
            raise UserError(f"a batch of {self.filled} triplets cannot be shared evenly by {self.processes} processes")
        if not 0 < self.batch <= len(self.triplets):
            raise UserError(
                f"a batch of {self.batch} triplets, but an epoch has {len(self.triplets)}: take a smaller one"
            )
        low, high = self.lengths
        if not 0 < low < high:
            raise UserError(f"lengths are drawn from [{low}, {high}), which holds no positive number")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.triplets) // self.batch

    @property
    def filled(self) -> int:
        """Triplets of a step over all processes with those that fill it up."""
        return -(-self.batch // self.multiple) * self.multiple

    def _positions(self) -> np.ndarray:
        """int [B], the places of this process's triplets in the filled batch."""
        share = self.filled // self.processes
        return np.arange(self.process * share, (self.process + 1) * share)

    def rows(self, step: int) -> np.ndarray:
        """int64 [B, 3], the rows of this process's triplets at a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self.triplets.rows(epoch, index * self.batch + np.minimum(self._positions(), self.batch - 1))

    def drawn_lengths(self, step: int) -> tuple[int, int]:
        """Query and database length of a step, the same on every process."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step, LENGTHS])))
        query, database = random.integers(*self.lengths, size=2)
        return int(query), int(database)

    def batches(self, start_step: int = 0) -> Iterator[TripletBatch]:
        """Batches from `start_step` on, without end, read ahead in the background; closing the iterator stops that."""
        with requires("grain", "training"):
            steps = grain.MapDataset.source(_Steps(self))[start_step:]
        dataset = steps.to_iter_dataset(grain.ReadOptions(self.threads, prefetch_buffer_size=self.prefetch))
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers copy absl's flags, which a plain program never parses
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self.workers))
        iterator = iter(dataset)
        try:
            for step in itertools.count(start_step):
                features, valid = next(iterator)
                if self.workers:  # what a worker sends lies in its shared memory, which must not outlive the iterator
                    features, valid = np.array(features), np.array(valid)
                sets = map(DescriptorSet, features, valid)
                lengths = self.drawn_lengths(step)
                arrays = TripletArrays(*sets, np.array(lengths, np.int32), self._positions() < self.batch)
                yield TripletBatch(arrays, lengths, self.rows(step), step)
        finally:
            iterator.close()


class _Steps:
    """The images of every step: the random-access source that Grain reads from, one element per batch.

    An element is a whole batch because moving every image on its own through threads and queues costs more than
    decoding it. Nothing is dropped by that: a batch does not depend on who reads it.
    """

    def __init__(self, pipeline: TripletPipeline) -> None:
        self._pipeline = pipeline

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if (
            multiprocessing.parent_process() is not None
        ):  # in a worker, which Grain leaves waiting when its parent is killed
            end_with_parent()

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """features [3, B, K, ·] and valid [3, B, K] of anchors, positives and negatives."""
        pipeline = self._pipeline
        rows = pipeline.rows(int(step)).T
        first = pipeline.source[int(rows[0, 0])].descriptors
        count = pipeline.descriptors or first.count
        dtype = first.features.dtype if first.is_packed or pipeline.dtype is None else pipeline.dtype
        features = np.zeros((*rows.shape, count, first.features.shape[-1]), dtype)
        valid = np.zeros((*rows.shape, count), bool)
        for place, row in np.ndenumerate(rows):
            image = pipeline.source[int(row)].descriptors
            if pipeline.drop or pipeline.noise:
                role, position = place[0], pipeline.process * rows.shape[1] + place[1]
                stream = np.random.SeedSequence([pipeline.seed, int(step), AUGMENTATION, role, position])
                image = augment(image, np.random.Generator(np.random.Philox(stream)), pipeline.drop, pipeline.noise)
            image = image.truncate(count)
            features[place][: image.count] = image.features
            valid[place][: image.count] = True if image.valid is None else image.valid
        return features, valid


def augment(descriptors: DescriptorSet, random: np.random.Generator, drop: float, noise: float) -> DescriptorSet:
    """The features of one image, float [N, D], with some rows left out (never all) and noise on the others.

    Raises UserError for packed bits, which cannot take noise.
    """
    if descriptors.is_packed:
        raise UserError(
            "data.drop and data.noise augment float descriptors, this data set holds packed bits; set both to 0"
        )
    kept = random.random(descriptors.count) >= drop
    kept[int(random.integers(len(kept)))] |= not kept.any()
    features = np.asarray(descriptors.features, np.float32)[kept]
    length = np.linalg.norm(features, axis=-1, keepdims=True) / np.sqrt(features.shape[-1])
    features += noise * length * random.standard_normal(features.shape, np.float32)
    valid = None if descriptors.valid is None else descriptors.valid[kept]
    return DescriptorSet(features.astype(descriptors.features.dtype), valid)


def prefetch_to_device(batches: Iterable[T], place: Callable[[T], T], size: int = 2) -> Iterator[T]:
    """Places the next `size` batches on the device while the current one is used.

    `place` starts the transfer and does not wait for it, as `jax.device_put` and
    `jax.make_array_from_process_local_data` do.
    """
    queue: collections.deque[T] = collections.deque()
    for batch in batches:
        queue.append(place(batch))
        if len(queue) > size:
            yield queue.popleft()
    yield from queue


def place_on(mesh: jax.sharding.Mesh) -> Callable[[TripletBatch], TripletBatch]:
    """For `prefetch_to_device`: puts the arrays of a batch on the devices of a mesh, as `BATCH_AXES` says.

    Every process gives its own part; the arrays that come out are of the global batch.
    """

    def put(spec: jax.sharding.PartitionSpec, fields: Any) -> Any:
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.tree.map(lambda field: jax.make_array_from_process_local_data(sharding, field), fields)

    def place(batch: TripletBatch) -> TripletBatch:
        return dataclasses.replace(batch, arrays=jax.tree.map(put, BATCH_AXES, batch.arrays))

    return place
