"""Pairs are scored once, kept, resumed; images are read once; reading goes ahead of scoring."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ames_jax.descriptors import DescriptorSet
from ames_jax.retrieval.database_cache import DatabaseCache
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.metrics import REVISITED, gldv2_map, gldv2_protocols, revisited_map
from ames_jax.retrieval.ranking import Setting, rerank
from ames_jax.retrieval.scores import ScoreFile, prefetch, score_task
from ames_jax.retrieval.sweeps import Grid, sweep_task
from ames_jax.retrieval.task import RetrievalTask
from ames_jax.runtime.errors import UserError

QUERIES, IMAGES, WIDTH = 6, 40, 8


class CountingReader:
    """Descriptors in memory; counts how often an image was read."""

    def __init__(self, features: np.ndarray):
        self.features, self.reads = features, np.zeros(len(features), int)

    def __len__(self) -> int:
        return len(self.features)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        assert (np.diff(rows) > 0).all()
        self.reads[rows] += 1
        return DescriptorSet(self.features[rows, :count])


class DotScorer:
    """The logit is the product of the first descriptors; remembers what it was asked."""

    def __init__(self, stop_after: int = 10**9):
        self.pairs, self.stop_after = 0, stop_after

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        if self.pairs >= self.stop_after:
            raise KeyboardInterrupt
        self.pairs += len(database.features)
        return (database.features[:, 0] @ query.features[0]).astype(np.float32)


def revisited_task(columns: int = IMAGES) -> RetrievalTask:
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(IMAGES)[:columns] for _ in range(QUERIES)])
    truth = []
    for _ in range(QUERIES):
        shuffled = rng.permutation(IMAGES)
        truth.append({"easy": shuffled[:3], "hard": shuffled[3:7], "junk": shuffled[7:10]})
    truth[2] = {"easy": [], "hard": [], "junk": [1]}
    return RetrievalTask(
        name="toy", first_stage="random", ranks=ranks, similarities=-np.sort(-rng.random(ranks.shape), axis=1),
        judged=judge(ranks, truth), protocols=REVISITED[1:],
        queries=CountingReader(rng.normal(size=(QUERIES, 3, WIDTH))),
        database=CountingReader(rng.normal(size=(IMAGES, 5, WIDTH))),
    )  # fmt: skip


def expected_logits(task: RetrievalTask) -> np.ndarray:
    pairs = np.einsum("qd,gd->qg", task.queries.features[:, 0], task.database.features[:, 0])
    return np.take_along_axis(pairs, task.ranks, axis=1)


def scored(task, folder, k=10, scorer=None, facts=None, memory_bytes=1 << 30):
    needed = task.needed_pairs(k)
    scores = ScoreFile(folder, facts or {"model": "m"}, QUERIES, needed.shape[1])
    count = score_task(
        task, needed, scorer or DotScorer(), scores,
        query_descriptors=3, database_descriptors=4, memory_bytes=memory_bytes, show_progress=False,
    )  # fmt: skip
    return np.array(scores.logits), needed, count


def test_the_union_of_the_shortlists_is_scored_once(tmp_path):
    task, scorer = revisited_task(), DotScorer()
    logits, needed, count = scored(task, tmp_path, scorer=scorer)
    np.testing.assert_allclose(logits[needed], expected_logits(task)[:, : needed.shape[1]][needed], rtol=1e-5)
    assert np.isnan(logits[~needed]).all()
    assert count == scorer.pairs == needed.sum()
    assert not needed[2].any()  # a query without a right image is in no figure
    assert task.database.reads[1:].max() == 1  # image 0 also tells the shape
    for protocol in task.protocols:
        junk = task.judged.columns_of(protocol.junk, IMAGES)
        for query in np.flatnonzero(task.counted(protocol)):
            first = np.flatnonzero(~junk[query])[:10]
            assert needed[query, first].all()


def test_a_small_memory_reads_again_and_scores_the_same(tmp_path):
    task = revisited_task()
    logits, needed, _ = scored(task, tmp_path / "large")
    small = revisited_task()
    again, _, _ = scored(small, tmp_path / "small", memory_bytes=8 * 3 * 4 * (WIDTH * 8 + 1))
    np.testing.assert_allclose(again[needed], logits[needed], rtol=1e-6)
    assert small.database.reads[1:].max() > 1


def test_a_killed_run_resumes_from_what_it_has(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        scored(revisited_task(), tmp_path, scorer=DotScorer(stop_after=20))
    scorer = DotScorer()
    logits, needed, count = scored(revisited_task(), tmp_path, scorer=scorer)
    assert 0 < count < needed.sum()
    np.testing.assert_allclose(
        logits[needed], expected_logits(revisited_task())[:, : needed.shape[1]][needed], rtol=1e-5
    )
    assert scored(revisited_task(), tmp_path)[2] == 0


def test_a_longer_shortlist_scores_what_is_new(tmp_path):
    _, small, _ = scored(revisited_task(), tmp_path, k=10)
    _, large, count = scored(revisited_task(), tmp_path, k=25)
    assert count == large.sum() - small.sum()


def test_scores_of_other_facts_are_not_taken(tmp_path):
    scored(revisited_task(), tmp_path)
    _, needed, count = scored(revisited_task(), tmp_path, facts={"model": "other"})
    assert count == needed.sum()


def test_a_truncated_score_file_is_scored_again(tmp_path):
    scored(revisited_task(), tmp_path)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:-40])
    _, needed, count = scored(revisited_task(), tmp_path)
    assert count == needed.sum()


def test_the_cache_returns_the_images_asked_for():
    rng = np.random.default_rng(0)
    reader = CountingReader(rng.normal(size=(IMAGES, 5, WIDTH)))
    cache = DatabaseCache(reader, 4, None, memory_bytes=8 * 6 * 4 * (WIDTH * 8 + 1))
    for _ in range(50):
        rows = rng.permutation(IMAGES)[: rng.integers(1, cache.images_a_block + 1)]
        np.testing.assert_array_equal(cache.gather(rows).features, reader.features[rows, :4])
    assert cache.images_read < 50 * cache.images_a_block


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda x: x * x, range(7), ahead=3)) == [x * x for x in range(7)]

    def fail(item):
        if item == 2:
            raise UserError("image 2 is damaged")
        return item

    seen = []
    with pytest.raises(UserError, match="image 2"):
        seen.extend(prefetch(fail, range(5)))
    assert seen == [] or seen == [0, 1]


def test_figures_equal_reranking_protocol_by_protocol(tmp_path):
    task = revisited_task()
    logits, _, _ = scored(task, tmp_path, k=25)
    rows = sweep_task(task, logits, Grid((10, 25), (0.0, 0.6), (0.5,)))
    assert [(row.setting.k, row.setting.lam) for row in rows] == [(10, 0.0), (10, 0.6), (25, 0.0), (25, 0.6)]
    truth = revisited_truth()
    every = expected_logits(task)
    for row in rows:
        for protocol in task.protocols:
            junk = task.judged.columns_of(protocol.junk, IMAGES)
            ranks = rerank(task.ranks, task.similarities, every, Setting(*dataclasses.astuple(row.setting)[:3]), junk)
            assert row.scores[protocol.name] == pytest.approx(revisited_map(ranks, truth)[protocol.name], abs=1e-4)


def revisited_truth() -> list[dict]:
    rng = np.random.default_rng(0)
    for _ in range(QUERIES):
        rng.permutation(IMAGES)
    truth = []
    for _ in range(QUERIES):
        shuffled = rng.permutation(IMAGES)
        truth.append({"easy": shuffled[:3], "hard": shuffled[3:7], "junk": shuffled[7:10]})
    truth[2] = {"easy": [], "hard": [], "junk": [1]}
    return truth


def test_public_and_private_queries_are_swept_apart(tmp_path):
    task = revisited_task()
    truth = [{"ok": [i, i + 1, i + 2]} for i in range(QUERIES)]
    task = dataclasses.replace(task, judged=judge(task.ranks, truth), protocols=gldv2_protocols(private=2))
    logits, _, _ = scored(task, tmp_path, k=20)
    (row,) = sweep_task(task, logits, Grid((20,), (0.3,), (1.0,)))
    ranks = rerank(task.ranks, task.similarities, logits, row.setting)
    assert row.scores == pytest.approx(gldv2_map(ranks, truth, private=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": CountingReader(np.zeros((5, 3, WIDTH)))}, "5 query images, but 6 neighbour lists"),
        ({"database": CountingReader(np.zeros((30, 3, WIDTH)))}, "the lists belong to another database"),
        ({"similarities": np.zeros((QUERIES, 7))}, "do not match"),
    ],
)
def test_parts_of_different_sets_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(revisited_task(), **change).check()


def test_too_short_lists_are_refused():
    with pytest.raises(UserError, match="rerank=30: the first stage lists 20"):
        revisited_task(columns=20).needed_pairs(30)
