"""Tables hold the right figures; pictures are written, headless, with what they must show."""

from __future__ import annotations

import dataclasses

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from ames_jax.report import gallery, tradeoff
from ames_jax.report.comparison import Comparison, Row, format_bytes
from ames_jax.report.curves import Curve, TrainingRun, _running_mean, draw_training
from ames_jax.report.gallery import GalleryQuery, RankedImage, draw_gallery, gallery_query, pick_queries
from ames_jax.report.tables import markdown_table, table_rows
from ames_jax.report.tradeoff import draw_tradeoff

DATA_SET = "embedded landmarks (rendered)"


@pytest.fixture
def comparison() -> Comparison:
    rows = (
        row("teacher", "teacher", 100, 256, {8: [64.0, 66.0], 64: [75.0, 76.0]}),
        row("student", "student", 100, 16, {8: [59.0, 60.0], 64: [73.0, 73.0], 100: [74.0, 75.0]}),
        row("student, short queries", "student", 50, 16, {64: [72.0, 72.0]}),
    )
    return Comparison(DATA_SET, "mAP", "VLAD16", [56.0, 57.0], 50, 78.4, rows)


def row(name: str, kind: str, queries: int, bytes_each: int, scores: dict[int, list[float]]) -> Row:
    return Row(name, kind, queries, {count: count * bytes_each for count in scores}, scores)


def test_bytes_are_readable():
    assert [format_bytes(n) for n in (5, 1023, 1024, 12800, 1_034_240, 3 << 29, 10**11, 10**16)] == [
        "5 B",
        "1023 B",
        "1 KB",
        "12.5 KB",
        "1,010 KB",
        "1.5 GB",
        "93.1 GB",
        "9,095 TB",
    ]


def test_markdown_holds_what_a_reader_must_know(comparison):
    text = markdown_table(comparison)
    for expected in (DATA_SET, "VLAD16", "78.4 %", "first 50 images", "2 seeds"):
        assert expected in text
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "**73.0 ± 0.0 · 1 KB**" in rows["student"]
    assert "| 74.5 ± 0.7 · 1.56 KB |" in rows["student"]
    assert rows["teacher"].endswith("| – |")
    assert "56.5 ± 0.7 · 0 B" in rows["nothing (global only)"]
    assert "**" not in rows["teacher"]


def test_rows_for_programs(comparison):
    rows = table_rows(comparison)
    assert rows[0]["method"] == "global only"
    assert rows[0]["mean"] == 56.5
    one = next(row for row in rows if row["method"] == "student" and row["database_descriptors"] == 64)
    assert (one["bytes_per_image"], one["within_1_kb"], one["mean"], one["spread"]) == (1024, True, 73.0, 0.0)
    assert len(rows) == 1 + 2 + 3 + 1


def test_one_seed_has_no_spread():
    rows = (row("student", "student", 10, 16, {8: [50.0]}),)
    text = markdown_table(Comparison(DATA_SET, "mAP", "VLAD16", [40.0], 50, None, rows))
    assert "±" not in text
    assert "ceiling" not in text


def test_tradeoff_is_drawn(comparison, tmp_path, monkeypatch):
    figures = captured(monkeypatch, tradeoff)
    draw_tradeoff(comparison, tmp_path / "tradeoff.png")
    axes = figures[0].axes[0]
    assert DATA_SET in axes.get_title(loc="left")
    texts = [text.get_text() for text in axes.texts]
    assert "1 KB" in texts
    assert "ceiling: recall of the first 50, 78.4" in texts
    assert "first stage alone, 56.5" in texts
    low, high = axes.get_xlim()
    assert low < 128
    assert high > 64 * 256
    assert image_varies(tmp_path / "tradeoff.png")


def test_training_curves_are_drawn(tmp_path):
    def curve(length):
        return Curve(np.arange(length), np.linspace(1, 0.1, length))

    runs = [TrainingRun(name, curve(60), curve(60), curve(4)) for name in ("teacher", "student")]
    draw_training(DATA_SET, runs, tmp_path / "training.png", base_line=0.5, ceiling=0.9)
    assert image_varies(tmp_path / "training.png")


def test_running_mean_shrinks_at_the_ends():
    np.testing.assert_allclose(_running_mean([1.0, 2.0, 3.0]), [2, 2, 2])
    np.testing.assert_allclose(_running_mean([3.0, 0, 0, 0, 0, 0]), [1.0, 0.75, 0.6, 0, 0, 0])
    assert _running_mean(np.eye(1, 200, 100)[0])[90] == pytest.approx(1 / 21)


def test_picked_queries_span_gain_to_loss():
    before, after = np.array([0.5, 0.5, np.nan, 0.5, 0.5, 0.5]), np.array([0.9, 0.1, np.nan, 0.5, 0.7, 0.4])
    np.testing.assert_array_equal(pick_queries(before, after, 3), [0, 3, 1])
    np.testing.assert_array_equal(pick_queries(before, after, 99), [0, 4, 3, 5, 1])


def picture(value: int) -> np.ndarray:
    return np.full((24, 32, 3), value, np.uint8)


def test_gallery_query_names_old_places():
    drawn = []

    def database_image(row: int) -> np.ndarray:
        drawn.append(row)
        return picture(row)

    query = gallery_query(picture(0), database_image, np.array([7, 8, 9, 5]), np.array([9, 7, 8, 5]), {9}, (20, 100), 2)
    assert [shown.old_place for shown in query.after] == [3, 1]
    assert [shown.right for shown in query.before] == [False, False]
    assert [shown.right for shown in query.after] == [True, False]
    assert set(drawn) == {7, 8, 9}


def test_gallery_is_drawn(tmp_path, monkeypatch):
    figures = captured(monkeypatch, gallery)
    before = [RankedImage(picture(10), False), RankedImage(picture(200), True)]
    after = [dataclasses.replace(before[1], old_place=2), dataclasses.replace(before[0], old_place=1)]
    query = GalleryQuery(picture(90), before, after, (50.0, 100.0))
    draw_gallery(DATA_SET, "student", [query, query], tmp_path / "gallery.png")
    assert DATA_SET in figures[0].get_suptitle()
    captions = [axes.get_xlabel() for axes in figures[0].axes]
    assert captions[0] == "query\nAP 50 → 100"
    assert "1  (▲ from 2)" in captions
    assert "2  (▼ from 1)" in captions
    assert image_varies(tmp_path / "gallery.png")


def test_no_display_and_no_global_state(comparison, tmp_path):
    settings = dict(matplotlib.rcParams)
    draw_tradeoff(comparison, tmp_path / "tradeoff.png")
    assert dict(matplotlib.rcParams) == settings


def captured(monkeypatch, module) -> list:
    """The figures that `module` draws from now on."""
    import contextlib

    figures, original = [], module.new_figure

    @contextlib.contextmanager
    def keep(*args, **kwargs):
        with original(*args, **kwargs) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(module, "new_figure", keep)
    return figures


def image_varies(path) -> bool:
    return imread(path).std() > 0.01
