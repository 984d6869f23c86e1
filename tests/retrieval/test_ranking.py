"""Re-ranking against the release's figures, and the rules for junk, ties and missing scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ames_jax.data.readers import MemoryReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.retrieval.grid import Grid
from ames_jax.retrieval.judgements import judge
from ames_jax.retrieval.metrics import REVISITED, mean_average_precision, protocol_score
from ames_jax.retrieval.protocols import METRICS
from ames_jax.retrieval.ranking import Setting, Shortlist, ensemble, rerank
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.retrieval.tuning import best_row, sweep
from ames_jax.runtime.errors import UserError


def reordered_head(similarities, scores, setting, junk=None):
    return Shortlist.cut(similarities, scores, setting.k, junk).order(setting.lam, setting.gamma)


GOLDEN = Path(__file__).parents[1] / "golden"


def test_reranking_equals_the_release():
    """Eight settings of the golden ROxford files; the logits are those of the golden matcher."""
    arrays = np.load(GOLDEN / "evaluation_roxford5k.npz")
    kinds = ("easy", "hard", "junk")
    lists = {kind: np.split(arrays[kind], np.cumsum(arrays[f"{kind}_count"])[:-1]) for kind in kinds}
    judged = judge(arrays["ranks"], [{kind: lists[kind][i] for kind in kinds} for i in range(70)])
    rows = json.loads((GOLDEN / "evaluation_results.json").read_text())["roxford5k"]["rerank"]
    rows = [row for row in rows if row["db_desc_num"] == 12]
    assert len(rows) == 8
    for row in rows:
        setting = Setting(row["rerank"], row["lamb"], row["temp"])
        for protocol in REVISITED[1:]:
            junk = judged.columns_of(protocol.junk, arrays["logits"].shape[1])
            order = reordered_head(arrays["similarities"], arrays["logits"], setting, junk)
            found = protocol_score(judged.reordered(order), protocol)
            assert round(found, 3) == row["metrics"][f"{protocol.name[0].upper()}_map"], (setting, protocol.name)


def test_junk_goes_behind_before_the_cut():
    ranks, similarities = np.array([[10, 11, 12, 13, 14]]), np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    logits = np.array([[9.0, 1.0, 2.0, 3.0]])
    setting = Setting(k=2, lam=0.0, gamma=1.0)
    np.testing.assert_array_equal(rerank(ranks, similarities, logits, setting), [[10, 11, 12, 13, 14]])
    junk = np.array([[True, False, False, False]])
    np.testing.assert_array_equal(rerank(ranks, similarities, logits, setting, junk), [[12, 11, 10, 13, 14]])


def test_junk_that_the_cut_still_reaches_stays_last_and_needs_no_score():
    junk, logits = np.array([[True, False, False]]), np.array([[np.nan, 1.0, 2.0]])
    order = reordered_head(np.zeros((1, 3)), logits, Setting(3, 0.0, 1.0), junk)
    np.testing.assert_array_equal(order, [[2, 1, 0]])


def test_ties_keep_the_order_of_the_first_stage():
    order = reordered_head(np.full((2, 6), 0.5), np.zeros((2, 6)), Setting(6, 0.3, 1.0))
    np.testing.assert_array_equal(order, np.tile(np.arange(6), (2, 1)))


def test_large_logits_do_not_tie():
    assert ensemble(np.zeros(1), np.float32([30.0]), 0, 1)[0] < ensemble(np.zeros(1), np.float32([31.0]), 0, 1)[0]


@given(st.integers(1, 8), st.floats(0, 1), st.floats(0, 5), st.integers(0, 2**31))
def test_reranking_permutes_the_first_k_by_score(k, lam, gamma, seed):
    rng = np.random.default_rng(seed)
    ranks = np.stack([rng.permutation(8) for _ in range(3)])
    similarities, logits = -np.sort(-rng.random((3, 8))), rng.normal(0, 3, (3, 8))
    new = rerank(ranks, similarities, logits, Setting(k, lam, gamma))
    np.testing.assert_array_equal(np.sort(new[:, :k]), np.sort(ranks[:, :k]))
    np.testing.assert_array_equal(new[:, k:], ranks[:, k:])
    order = reordered_head(similarities, logits, Setting(k, lam, gamma))
    scores = np.take_along_axis(ensemble(similarities, logits, lam, gamma), order, axis=1)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_lambda_one_is_the_first_stage():
    rng = np.random.default_rng(0)
    ranks, similarities = np.stack([rng.permutation(9) for _ in range(4)]), -np.sort(-rng.random((4, 9)))
    np.testing.assert_array_equal(rerank(ranks, similarities, rng.normal(size=(4, 9)), Setting(9, 1.0, 0.5)), ranks)


def case(seed: int = 0) -> tuple[RetrievalSet, list[dict], np.ndarray]:
    rng = np.random.default_rng(seed)
    ranks, similarities = np.stack([rng.permutation(30) for _ in range(12)]), -np.sort(-rng.random((12, 30)))
    ground_truth = [{"ok": rng.choice(30, 4, replace=False)} for _ in range(12)]
    right = np.stack([np.isin(row, entry["ok"]) for row, entry in zip(ranks, ground_truth, strict=True)])
    descriptors = [MemoryReader(DescriptorSet(np.zeros((count, 1, 1)))) for count in (12, 30)]
    data = RetrievalSet(
        name="toy", first_stage="random", ranks=ranks, similarities=similarities, judged=judge(ranks, ground_truth),
        protocols=METRICS["map"], queries=descriptors[0], database=descriptors[1],
    )  # fmt: skip
    return data, ground_truth, right + rng.normal(0, 1, (12, 30))


def test_sweep_measures_what_reranking_gives():
    data, ground_truth, scores = case()
    rows = sweep(data, scores[..., None], Grid((5, 20), (0.0, 0.5, 1.0), (0.3, 2.0)))
    assert [row.setting for row in rows[:3]] == [Setting(5, 0.0, 0.3), Setting(5, 0.0, 2.0), Setting(5, 0.5, 0.3)]
    assert len(rows) == 12
    for row in rows:
        direct = mean_average_precision(rerank(data.ranks, data.similarities, scores, row.setting), ground_truth)
        assert row.figures["mAP"] == pytest.approx(direct)


def test_the_best_row_has_the_best_threshold():
    data, _, scores = case()
    family = np.stack([np.zeros_like(scores), scores], axis=-1)
    rows = sweep(data, family, Grid((20,), (0.0, 0.5, 1.0), (1.0,)), (0.2, 0.4))
    assert best_row(rows).setting.threshold == 0.4
    assert best_row(rows).mean == max(row.figures["mAP"] for row in rows)
    flat = sweep(data, np.zeros((*scores.shape, 1)), Grid((20,), (0.2, 0.8), (1.0,)))
    assert best_row(flat).setting.lam == 0.2  # equal rows: the first


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(3, 1.2, 1.0), "lam=1.2"),
        (Setting(3, float("nan"), 1.0), "lam=nan"),
        (Setting(3, 0.5, -1.0), "gamma=-1"),
        (Setting(31, 0.5, 1.0), "rerank=31: the first stage lists 30"),
        (Setting(0, 0.5, 1.0), "rerank=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    data, _, scores = case()
    with pytest.raises(UserError, match=message):
        reordered_head(data.similarities, scores, setting)


def test_missing_scores_are_refused():
    data, _, scores = case()
    with pytest.raises(UserError, match="rerank=20: 12 pairs of the shortlist have no score"):
        reordered_head(data.similarities, scores[:, :19], Setting(20, 0.5, 1.0))
