"""Batches are a pure function of (seed, step): restored, shared and read in any way, they are the same."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ames_jax.data.neighbours import Neighbours
from ames_jax.data.shards import ImageRecord, open_split, write_shards
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.errors import UserError
from ames_jax.training import pipeline as pipeline_module
from ames_jax.training.pipeline import TripletPipeline, place_on, prefetch_to_device
from ames_jax.training.triplets import Triplets

COUNT, ROWS, WIDTH = 40, 6, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    images = [
        ImageRecord(str(i), i % 4, DescriptorSet(random.normal(size=(ROWS - i % 3, WIDTH)).astype(np.float16)))
        for i in range(COUNT)
    ]
    write_shards(root, "toy", {"train": images}, descriptors=ROWS, width=WIDTH, shards=3)
    return open_split(root, "train")


def pipeline(source, **options):
    random = np.random.default_rng(1)
    indices = np.argsort(random.random((COUNT, COUNT)) + 2 * np.eye(COUNT), axis=1)[:, :20].astype(np.int32)
    similarities = np.sort(random.random((COUNT, 20)).astype(np.float32), axis=1)[:, ::-1]
    triplets = Triplets(source.labels(), Neighbours(indices, similarities), seed=0, top=20, minimum=2)
    return TripletPipeline(source, triplets, **{"batch": 6, "lengths": (2, 6), "seed": 5, **options})


def take(pipe, count, start=0):
    batches = pipe.batches(start)
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def same(first, second):
    assert (first.step, first.lengths) == (second.step, second.lengths)
    np.testing.assert_array_equal(first.arrays.lengths, second.arrays.lengths)
    np.testing.assert_array_equal(first.ids, second.ids)
    for role in ("anchor", "positive", "negative"):
        np.testing.assert_array_equal(getattr(first.arrays, role).features, getattr(second.arrays, role).features)
        np.testing.assert_array_equal(getattr(first.arrays, role).valid, getattr(second.arrays, role).valid)


def test_a_batch_holds_the_images_it_names(source):
    for batch in take(pipeline(source), 8):
        for column, role in enumerate(("anchor", "positive", "negative")):
            for slot, row in enumerate(batch.ids[:, column]):
                expected = source[row].descriptors
                np.testing.assert_array_equal(getattr(batch.arrays, role).features[slot], expected.features)
                np.testing.assert_array_equal(getattr(batch.arrays, role).valid[slot], expected.valid)


def test_an_epoch_holds_every_anchor_at_most_once_and_drops_the_rest(source):
    pipe = pipeline(source)
    steps = pipe.steps_per_epoch
    assert len(pipe.triplets) % 6, "the test needs a rest to drop"
    batches = take(pipe, 2 * steps)
    for epoch in (batches[:steps], batches[steps:]):
        anchors = np.concatenate([batch.ids[:, 0] for batch in epoch])
        assert len(np.unique(anchors)) == len(anchors) == steps * 6
    assert [batch.step for batch in batches] == list(range(2 * steps))


@pytest.mark.parametrize("options", [{}, {"threads": 1, "prefetch": 1}, {"threads": 4, "prefetch": 7}])
def test_restoring_gives_what_an_unbroken_run_gives(source, options):
    unbroken = take(pipeline(source), 12)
    for first, second in zip(unbroken[5:], take(pipeline(source, **options), 7, start=5)):
        same(first, second)


def test_workers_change_nothing_and_their_end_is_told(source):
    unbroken = take(pipeline(source), 6)
    with contextlib.closing(pipeline(source, workers=2).batches(2)) as batches:
        for first in unbroken[2:]:
            same(first, next(batches))
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="process was terminated unexpectedly"):  # one line by `run_main`
            collections.deque(batches, maxlen=0)


def test_a_worker_ends_with_its_parent(source, monkeypatch):
    """Grain's would wait for ever (`end_with_parent` itself: tests/runtime/test_cores.py)."""
    watched = []
    monkeypatch.setattr(pipeline_module, "end_with_parent", lambda: watched.append(1))
    steps = pickle.dumps(pipeline_module._Steps(pipeline(source)))
    pickle.loads(steps)
    assert not watched
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    pickle.loads(steps)
    assert watched


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batch_of_one(source, processes):
    whole = take(pipeline(source), 7)
    parts = [take(pipeline(source, process=p, processes=processes), 7) for p in range(processes)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        np.testing.assert_array_equal(batch.ids, np.concatenate([share.ids for share in shares]))
        features = np.concatenate([share.arrays.negative.features for share in shares])
        np.testing.assert_array_equal(batch.arrays.negative.features, features)
        assert {share.lengths for share in shares} == {batch.lengths}


def test_lengths_are_uniform_and_pure(source):
    pipe = pipeline(source)
    drawn = np.array([pipe.drawn_lengths(step) for step in range(4000)])
    for column in drawn.T:
        values, counts = np.unique(column, return_counts=True)
        np.testing.assert_array_equal(values, [2, 3, 4, 5])
        # five standard deviations of a count of 4000 draws with p = 1/4
        assert (np.abs(counts - 1000) < 5 * np.sqrt(750)).all()
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1
    assert pipe.drawn_lengths(17) == tuple(drawn[17])
    assert any(pipeline(source, seed=6).drawn_lengths(step) != tuple(drawn[step]) for step in range(20))


def test_descriptors_and_dtype_are_as_asked(source):
    batch = take(pipeline(source, descriptors=4, dtype=np.float32), 1)[0]
    assert batch.arrays.anchor.features.shape == (6, 4, WIDTH)
    assert batch.arrays.anchor.features.dtype == np.float32
    np.testing.assert_array_equal(batch.arrays.anchor.features[0], source[batch.ids[0, 0]].descriptors.features[:4])
    longer = take(pipeline(source, descriptors=9), 1)[0]
    assert longer.arrays.anchor.features.shape == (6, 9, WIDTH)
    assert not longer.arrays.anchor.valid[:, ROWS:].any()


def test_augmentation_leaves_out_and_disturbs_and_is_pure(source):
    plain, options = take(pipeline(source), 3), {"drop": 0.3, "noise": 0.1}
    disturbed = take(pipeline(source, **options), 3)
    halves = [take(pipeline(source, **options, process=i, processes=2), 3, 0) for i in range(2)]
    for before, after, parts in zip(plain, disturbed, zip(*halves)):
        np.testing.assert_array_equal(before.ids, after.ids)
        assert 1 <= after.arrays.anchor.valid.sum() < before.arrays.anchor.valid.sum()
        # The strongest descriptor that is left is one of the image's own, moved a little.
        offset = np.linalg.norm(
            np.float32(after.arrays.anchor.features[0, 0] - before.arrays.anchor.features[0]), axis=-1
        ).min()
        assert 0 < offset < 0.3 * np.linalg.norm(np.float32(after.arrays.anchor.features[0, 0]))
        joined = np.concatenate([part.arrays.negative.features for part in parts])
        np.testing.assert_array_equal(joined, after.arrays.negative.features)


def test_any_sequence_of_images_is_a_source():
    random = np.random.default_rng(0)

    class Bits:
        def __len__(self):
            return COUNT

        def __getitem__(self, row):
            return ImageRecord("", row % 4, DescriptorSet(random.integers(0, 256, (5, 2), dtype=np.uint8)))

        def labels(self):
            return np.arange(COUNT) % 4

    batch = take(pipeline(Bits()), 1)[0]
    assert batch.arrays.positive.features.dtype == np.uint8
    assert batch.arrays.positive.valid.all()


def test_batches_reach_the_devices(source):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    batches = pipeline(source).batches()
    placed = prefetch_to_device(batches, place_on(mesh), size=2)
    for expected, batch in zip(take(pipeline(source), 5), placed):
        assert isinstance(batch.arrays.anchor.features, jax.Array)
        assert len(batch.arrays.anchor.features.sharding.device_set) == 2
        same(expected, batch)
    placed.close()
    batches.close()


def test_prefetching_gives_every_batch_of_a_finite_stream():
    assert list(prefetch_to_device(range(7), lambda x: x * 2, size=3)) == [0, 2, 4, 6, 8, 10, 12]


def test_settings_that_cannot_work_are_named(source):
    with pytest.raises(UserError, match="a batch of 6 triplets cannot be shared evenly by 4 processes"):
        pipeline(source, processes=4)
    with pytest.raises(UserError, match="a batch of 600 triplets, but an epoch has"):
        pipeline(source, batch=600)
    with pytest.raises(UserError, match=r"lengths are drawn from \[5, 5\)"):
        pipeline(source, lengths=(5, 5))
