"""Pairs are scored once, kept, resumed; images are read once; what scores depend on is told apart."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from ames_jax.data.readers import MemoryReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.retrieval.grid import Counts, Grid
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.matchers import Matcher
from ames_jax.retrieval.metrics import REVISITED, gldv2_map, gldv2_protocols, revisited_map
from ames_jax.retrieval.ranking import rerank
from ames_jax.retrieval.score_keeper import DatabaseCache, ScoreKeeper
from ames_jax.retrieval.scorer import in_threads
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import sweep
from ames_jax.runtime.checksums import CHECKSUMS
from ames_jax.runtime.errors import UserError

QUERIES, IMAGES, WIDTH = 6, 40, 8


class CountingReader(MemoryReader):
    """Descriptors in memory; counts how often an image was read."""

    def __init__(self, features: np.ndarray):
        super().__init__(DescriptorSet(features))
        self.features, self.reads = features, np.zeros(len(features), int)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        assert (np.diff(rows) > 0).all()
        self.reads[rows] += 1
        return super().read(rows, count)


class Dot(Matcher):
    """The score is the product of the first descriptors; remembers how many pairs it was asked for."""

    name, facts = "dot", {"matcher": "dot"}

    def __init__(self, stop_after: int = 10**9):
        self.pairs, self.stop_after = 0, stop_after

    def stored_bytes(self, count: int) -> int:
        return count

    def shortlist(self, query: DescriptorSet, database: DescriptorSet) -> np.ndarray:
        if self.pairs >= self.stop_after:
            raise KeyboardInterrupt
        self.pairs += len(database.features)
        return (database.features[:, 0] @ query.features[0]).astype(np.float32)


def truth(rng: np.random.Generator) -> list[dict]:
    entries = []
    for _ in range(QUERIES):
        shuffled = rng.permutation(IMAGES)
        entries.append({"easy": shuffled[:3], "hard": shuffled[3:7], "junk": shuffled[7:10]})
    entries[2] = {"easy": [], "hard": [], "junk": [1]}
    return entries


def revisited_set(columns: int = IMAGES) -> RetrievalSet:
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(IMAGES)[:columns] for _ in range(QUERIES)])
    return RetrievalSet(
        name="toy", first_stage="random", ranks=ranks, judged=judge(ranks, truth(np.random.default_rng(1))),
        similarities=-np.sort(-rng.random(ranks.shape), axis=1), protocols=REVISITED[1:],
        queries=CountingReader(rng.normal(size=(QUERIES, 3, WIDTH))),
        database=CountingReader(rng.normal(size=(IMAGES, 5, WIDTH))),
    )  # fmt: skip


def expected_scores(data: RetrievalSet) -> np.ndarray:
    pairs = np.einsum("qd,gd->qg", data.queries.features[:, 0], data.database.features[:, 0])
    return np.take_along_axis(pairs, data.ranks, axis=1)


def scored(data, folder, k=10, matcher=None, **options) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores [Nq, C], which of them were needed, and how many were made now."""
    matcher = matcher or Dot()
    scores = ScoreKeeper(folder, **options).scores(data, matcher, k, Counts(3, 4))
    return scores[..., 0], data.needed_pairs(k), matcher.pairs


@pytest.mark.parametrize("kept", [True, False])
def test_the_union_of_the_shortlists_is_scored_once(tmp_path, kept):
    data = revisited_set()
    scores, needed, count = scored(data, tmp_path if kept else None)
    np.testing.assert_allclose(scores[needed], expected_scores(data)[:, : needed.shape[1]][needed], rtol=1e-5)
    assert np.isnan(scores[~needed]).all()
    assert count == needed.sum()
    assert not needed[2].any()  # a query without a right image is in no figure
    assert data.database.reads[1:].max() == 1  # image 0 also tells the shape
    for protocol in data.protocols:
        junk = data.judged.columns_of(protocol.junk, IMAGES)
        for query in np.flatnonzero(data.counted(protocol)):
            first = np.flatnonzero(~junk[query])[:10]
            assert needed[query, first].all()


def test_a_small_memory_reads_again_and_scores_the_same(tmp_path):
    scores, needed, _ = scored(revisited_set(), tmp_path / "large")
    small = revisited_set()
    again, _, _ = scored(small, tmp_path / "small", memory_bytes=8 * 3 * 4 * (WIDTH * 8 + 1))
    np.testing.assert_allclose(again[needed], scores[needed], rtol=1e-6)
    assert small.database.reads[1:].max() > 1


def test_a_killed_run_resumes_from_what_it_has(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        scored(revisited_set(), tmp_path, matcher=Dot(stop_after=20))
    data = revisited_set()
    scores, needed, count = scored(data, tmp_path)
    assert 0 < count < needed.sum()
    np.testing.assert_allclose(scores[needed], expected_scores(data)[:, : needed.shape[1]][needed], rtol=1e-5)
    assert scored(revisited_set(), tmp_path)[2] == 0


def test_a_longer_shortlist_scores_what_is_new(tmp_path):
    _, small, _ = scored(revisited_set(), tmp_path, k=10)
    _, large, count = scored(revisited_set(), tmp_path, k=25)
    assert count == large.sum() - small.sum()


def swap_last_of_the_shortlist(data: RetrievalSet) -> RetrievalSet:
    """The lists agree on all but the last images that are scored."""
    ranks = data.ranks.copy()
    ranks[:, 138:140] = ranks[:, [139, 138]]
    return dataclasses.replace(data, ranks=ranks, judged=judge(ranks, truth(np.random.default_rng(1))))


def change_last_image(data: RetrievalSet) -> RetrievalSet:
    features = data.database.features.copy()
    features[-1] += 1
    return dataclasses.replace(data, database=CountingReader(features))


@pytest.mark.parametrize("change", [swap_last_of_the_shortlist, change_last_image])
def test_scores_of_other_lists_or_another_gallery_are_not_taken(tmp_path, change):
    """Also where they differ behind the first hundred columns and the first image alone."""
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(150) for _ in range(QUERIES)])
    data = dataclasses.replace(
        revisited_set(), ranks=ranks, similarities=-np.sort(-rng.random(ranks.shape), axis=1),
        judged=judge(ranks, truth(np.random.default_rng(1))), database=CountingReader(rng.normal(size=(150, 5, WIDTH))),
    )  # fmt: skip
    scored(data, tmp_path, k=140)
    other = change(data)
    scores, needed, count = scored(other, tmp_path, k=140)
    assert count == needed.sum()
    np.testing.assert_allclose(scores[needed], expected_scores(other)[:, : needed.shape[1]][needed], rtol=1e-5)


def test_scores_of_another_matcher_are_not_taken(tmp_path):
    scored(revisited_set(), tmp_path)
    other = Dot()
    other.facts = {"matcher": "another"}
    _, needed, count = scored(revisited_set(), tmp_path, matcher=other)
    assert count == needed.sum()


def test_a_truncated_score_file_is_scored_again(tmp_path):
    scored(revisited_set(), tmp_path)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:-40])
    _, needed, count = scored(revisited_set(), tmp_path)
    assert count == needed.sum()


def test_damaged_scores_are_made_again(tmp_path, capsys):
    expected, needed, _ = scored(revisited_set(), tmp_path)
    (file,) = tmp_path.glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-40] + bytes([whole[-40] ^ 64]) + whole[-39:])
    found, _, count = scored(revisited_set(), tmp_path)
    assert count == needed.sum()
    assert "its checksum is wrong" in capsys.readouterr().err
    np.testing.assert_array_equal(found, expected)
    assert scored(revisited_set(), tmp_path)[2] == 0


def test_scores_of_a_run_killed_after_its_last_pair_get_their_checksum(tmp_path):
    scored(revisited_set(), tmp_path)
    checksums = tmp_path / CHECKSUMS
    whole = checksums.read_bytes()
    checksums.unlink()
    (tmp_path / f".{CHECKSUMS}.partial").write_bytes(whole[:20])
    assert scored(revisited_set(), tmp_path)[2] == 0
    assert checksums.read_bytes() == whole
    assert not list(tmp_path.glob(".*"))


def test_the_cache_returns_the_images_asked_for():
    rng = np.random.default_rng(0)
    reader = CountingReader(rng.normal(size=(IMAGES, 5, WIDTH)))
    cache = DatabaseCache(reader, 4, lambda images: images, memory_bytes=8 * 6 * 4 * (WIDTH * 8 + 1))
    for _ in range(50):
        rows = rng.permutation(IMAGES)[: rng.integers(1, cache.images_per_block + 1)]
        np.testing.assert_array_equal(cache.gather(rows).features, reader.features[rows, :4])
    assert cache.images_read < 50 * cache.images_per_block


def test_threads_keep_the_order_and_pass_errors_on():
    def slow_square(x):
        time.sleep(0.002 * (3 - x % 3))
        return x * x

    assert list(in_threads(slow_square, range(9), 3)) == [x * x for x in range(9)]

    def fail(item):
        if item == 2:
            raise UserError("image 2 is damaged")
        return item

    seen = []
    with pytest.raises(UserError, match="image 2"):
        seen.extend(in_threads(fail, range(5), 2))
    assert seen in ([], [0, 1])


def test_figures_equal_reranking_protocol_by_protocol():
    data = revisited_set()
    scores, _, _ = scored(data, None, k=25)
    rows = sweep(data, scores[..., None], Grid((10, 25), (0.0, 0.6), (0.5,)))
    assert [(row.setting.k, row.setting.lam) for row in rows] == [(10, 0.0), (10, 0.6), (25, 0.0), (25, 0.6)]
    every = expected_scores(data)
    for row in rows:
        for protocol in data.protocols:
            junk = data.judged.columns_of(protocol.junk, IMAGES)
            ranks = rerank(data.ranks, data.similarities, every, row.setting, junk)
            expected = revisited_map(ranks, truth(np.random.default_rng(1)))[protocol.name]
            assert row.figures[protocol.name] == pytest.approx(expected, abs=1e-4)


def test_public_and_private_queries_are_swept_apart():
    data = revisited_set()
    entries = [{"ok": [i, i + 1, i + 2]} for i in range(QUERIES)]
    data = dataclasses.replace(data, judged=judge(data.ranks, entries), protocols=gldv2_protocols(private=2))
    scores, _, _ = scored(data, None, k=20)
    (row,) = sweep(data, scores[..., None], Grid((20,), (0.3,), (1.0,)))
    ranks = rerank(data.ranks, data.similarities, scores, row.setting)
    assert row.figures == pytest.approx(gldv2_map(ranks, entries, private=2))


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
        dataclasses.replace(revisited_set(), **change)


def test_too_short_lists_are_refused():
    with pytest.raises(UserError, match="rerank=30: the first stage lists 20"):
        revisited_set(columns=20).needed_pairs(30)


def test_parts_of_a_set_are_given_by_name():
    with pytest.raises(TypeError):
        RetrievalSet("toy", "random")
