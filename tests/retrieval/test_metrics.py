"""Protocols against the release's own figures, a plain written-out reference, and properties that must hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ames_jax.retrieval.judgements import find_hits, judge, judge_by_class
from ames_jax.retrieval.metrics import (
    REVISITED,
    Protocol,
    average_precision,
    gldv2_map,
    hit_at,
    mean_average_precision,
    protocol_score,
    recall_at,
    revisited_map,
)
from ames_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
RESULTS = json.loads((GOLDEN / "evaluation_results.json").read_text())


def golden(name: str, kinds: tuple[str, ...]) -> tuple[np.ndarray, list[dict]]:
    arrays = np.load(GOLDEN / f"evaluation_{name}.npz")
    lists = {kind: np.split(arrays[kind], np.cumsum(arrays[f"{kind}_count"])[:-1]) for kind in kinds}
    return arrays["ranks"], [{kind: lists[kind][i] for kind in kinds} for i in range(len(arrays["ranks"]))]


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_revisited_equals_the_release(name):
    ranks, ground_truth = golden(name, ("easy", "hard", "junk"))
    expected = RESULTS[name]["global_only"]
    found = revisited_map(ranks, ground_truth)
    for protocol in REVISITED:
        letter = protocol.name[0].upper()
        assert round(found[protocol.name], 3) == expected[f"{letter}_map"]


def test_gldv2_equals_the_release():
    found = gldv2_map(*golden("gldv2", ("ok",)))
    expected = RESULTS["gldv2-test"]["global_only"]
    assert round(found["public"], 3) == expected["pub_map"]
    assert round(found["private"], 3) == expected["priv_map"]
    assert round(found["combined"], 3) == expected["map"]


def plain_average_precision(ranking, ok, junk, depth=None, trapezoid=False):
    """AP as the module's docstring defines it, one image at a time."""
    ok, junk = set(ok), set(junk) - set(ok)
    if not ok:
        return np.nan
    place, found, total, seen = 0, 0, 0.0, set()
    for image in ranking:
        first = image not in seen
        seen.add(image)
        if image in junk and first:
            continue
        if image in ok and first and (depth is None or place < depth):
            precision = (found + 1) / (place + 1)
            if trapezoid:
                precision = (precision + (found / place if place else 1.0)) / 2
            total += precision
            found += 1
        place += 1
    return total / min(len(ok), len(ranking), depth or len(ranking))


images = st.integers(min_value=-1, max_value=14)
some = st.lists(st.integers(min_value=0, max_value=14), max_size=8)


@given(st.lists(images, min_size=1, max_size=20), some, some, st.sampled_from([None, 1, 3, 100]), st.booleans())
def test_equals_the_written_out_definition(ranking, ok, junk, depth, trapezoid):
    judged = judge(np.array([ranking]), [{"ok": ok, "junk": junk}])
    found = average_precision(find_hits(judged), depth, trapezoid)
    np.testing.assert_allclose(found, [plain_average_precision(ranking, ok, junk, depth, trapezoid)], atol=1e-12)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11), min_size=1), st.sets(st.integers(0, 11)))
def test_properties_of_a_whole_ranking(ranking, ok, junk):
    ground_truth = [{"ok": sorted(ok), "junk": sorted(junk)}]
    found = mean_average_precision(np.array([ranking]), ground_truth)
    assert 0 < found <= 100 + 1e-9
    without_junk = [image for image in ranking if image not in junk - ok]
    assert found == pytest.approx(mean_average_precision(np.array([without_junk]), ground_truth))
    best_first = sorted(ranking, key=lambda image: image not in ok)
    assert mean_average_precision(np.array([best_first]), ground_truth) == pytest.approx(100)


@given(st.permutations(range(10)), st.permutations(range(6)), some, some)
def test_moving_the_judged_images_equals_judging_the_moved_ranking(ranking, order, ok, junk):
    ranks, order = np.array([ranking]), np.array([order])
    moved = ranks.copy()
    moved[:, :6] = ranks[0, order]
    ground_truth = [{"ok": ok, "junk": junk}]
    direct, indirect = judge(moved, ground_truth), judge(ranks, ground_truth).reordered(order)
    np.testing.assert_array_equal(direct.place, indirect.place)
    np.testing.assert_array_equal(direct.kind, indirect.kind)


def test_queries_are_kept_apart():
    ranks = np.array([[0, 1, 2], [2, 1, 0], [0, 1, 2]])
    ground_truth = [{"ok": [2], "junk": [0, 1]}, {"ok": [], "junk": [1]}, {"ok": [1, 2], "junk": []}]
    found = average_precision(find_hits(judge(ranks, ground_truth)))
    np.testing.assert_allclose(found, [1.0, np.nan, (1 / 2 + 2 / 3) / 2])
    assert mean_average_precision(ranks, ground_truth) == pytest.approx(100 * (1 + 7 / 12) / 2)


def test_edge_cases_are_as_documented():
    assert np.isnan(mean_average_precision(np.array([[0, 1]]), [{"ok": []}]))
    assert mean_average_precision(np.array([[0, 1]]), [{"ok": [5]}]) == 0
    assert mean_average_precision(np.array([[3, 3, 4]]), [{"ok": [3, 4, 4]}]) == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert mean_average_precision(np.array([[-1, 3]]), [{"ok": [3]}]) == pytest.approx(50)
    assert mean_average_precision(np.array([[3, 4]]), [{"ok": [3], "junk": [3]}]) == pytest.approx(100)


def test_counts_at_k():
    hits = find_hits(
        judge(np.array([[9, 1, 8, 2], [1, 9, 8, 7], [7, 8, 9, 6]]), [{"ok": [1, 2]}, {"ok": [1]}, {"ok": [1]}])
    )
    np.testing.assert_allclose(hit_at(hits, 1), [0, 1, 0])
    np.testing.assert_allclose(recall_at(hits, 2), [0.5, 1, 0])


def test_class_labels_equal_listed_ground_truth():
    rng = np.random.default_rng(0)
    database_labels, query_labels = rng.integers(0, 6, 40), np.append(rng.integers(0, 6, 9), 99)
    own = np.where(np.arange(10) % 2, rng.integers(0, 40, 10), -1)
    query_labels = np.where(own >= 0, database_labels[own], query_labels)
    ranks = np.stack([rng.permutation(40)[:25] for _ in range(10)])
    listed = [
        {"ok": np.setdiff1d(np.flatnonzero(database_labels == label), itself), "junk": [itself] if itself >= 0 else []}
        for label, itself in zip(query_labels, own, strict=True)
    ]
    for depth in (None, 10):
        protocol = Protocol("map", depth=depth)
        by_class = protocol_score(judge_by_class(ranks, query_labels, database_labels, own), protocol)
        assert by_class == pytest.approx(protocol_score(judge(ranks, listed), protocol))


def test_long_rankings_are_read_once_for_all_protocols():
    """A million columns: only the judged images are kept."""
    ranks = np.arange(1_000_000)[::-1][None]
    judged = judge(ranks, [{"easy": [999_999], "hard": [0], "junk": [999_998]}])
    np.testing.assert_array_equal(judged.place, [0, 1, 999_999])
    assert protocol_score(judged, REVISITED[2]) == pytest.approx(100 * (0 + 1 / 999_998) / 2)


@pytest.mark.parametrize(
    ("ranks", "ground_truth", "message"),
    [
        ([[0, 1]], [{"ok": [0]}, {"ok": [1]}], "ground truth has 2 queries"),
        ([[0, 1]], [{"oks": [0]}], "query 0 has none of the lists"),
        ([[0, 1]], [{"ok": [-1]}], "lists database row -1"),
    ],
)
def test_what_does_not_fit_is_refused(ranks, ground_truth, message):
    with pytest.raises(UserError, match=message):
        judge(np.array(ranks), ground_truth)


def test_a_ranking_of_another_database_is_refused():
    with pytest.raises(UserError, match="another database"):
        judge_by_class(np.array([[0, 7]]), np.array([1]), np.array([1, 2]))


def test_float_indices_are_refused():
    with pytest.raises(TypeError, match="integers"):
        judge(np.array([[0.0, 1.0]]), [{"ok": [0]}])
