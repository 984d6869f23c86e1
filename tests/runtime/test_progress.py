"""Progress off a terminal: lines at intervals also while one unit takes long, silence for short work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ames_jax.data.checks import validation
from ames_jax.data.readers import MemoryReader
from ames_jax.data.store import build_store
from ames_jax.descriptors import DescriptorSet
from ames_jax.retrieval import refinement
from ames_jax.runtime import checksums, progress
from ames_jax.runtime.progress import Progress


def wait_for(capsys: pytest.CaptureFixture, text: str) -> str:
    """What came on stderr until `text` stood there."""
    told, until = "", time.monotonic() + 30
    while text not in told and time.monotonic() < until:
        told += capsys.readouterr().err
        time.sleep(0.01)
    assert text in told
    return told


def test_lines_tell_count_share_rate_and_time_left(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with Progress("scoring", total=4000, unit="pairs") as bar:
        bar.update(1000)
        time.sleep(0.1)
        bar.update(200)
        bar.note("loss 0.5")
        line = wait_for(capsys, "1,200 of 4,000 pairs, 30%").splitlines()[-1]
    assert line.startswith("scoring: 1,200 of 4,000 pairs, 30%, ")
    assert " pairs/s, " in line
    assert " left, loss 0.5, 00:00 so far" in line
    assert "done in 00:00" in capsys.readouterr().err


def test_work_that_was_done_before_is_no_rate():
    with Progress("training", total=40, unit="steps", done=30) as bar:
        assert bar.line() == "training: 30 of 40 steps, 75%"
        bar.update()
        assert bar.line() == "training: 31 of 40 steps, 78%"


def test_line_appears_while_nothing_is_finished(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with Progress("training the first stage"):
        assert wait_for(capsys, "training").startswith("training the first stage, 00:00 so far\n")


def test_lines_of_the_outermost_work_tell_of_all(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Also where what is inside never lasts until a line of its own is due."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    told, until = "", time.monotonic() + 30
    with Progress("outer", 3) as outer:
        outer.update()
        while "; " not in told and time.monotonic() < until:
            with Progress("inner", 9):
                time.sleep(0.03)
            told += capsys.readouterr().err
    assert "outer: 1 of 3 items, 33%; inner: 0 of 9 items, 0%, 00:00 so far\n" in told


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture):
    with Progress("short", total=3) as bar:
        assert list(bar.over("abc")) == ["a", "b", "c"]
    assert bar.line().startswith("short: 3 of 3 items, 100%")
    assert capsys.readouterr().err == ""


def test_only_the_lead_process_reports(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    monkeypatch.setattr("ames_jax.runtime.processes.is_lead", lambda: False)
    with Progress("work"):
        time.sleep(0.05)
    progress.write("a result")
    assert capsys.readouterr() == ("", "")


def test_terminal_shows_a_bar(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("scoring", total=10, unit="pairs", done=4) as bar:
        bar.update(6)
        progress.write("a result")
    captured = capsys.readouterr()
    assert "\rscoring:  40%" in captured.err
    assert captured.out == "a result\n"


def slow(function: Callable) -> Callable:
    """The function, with time for a line or two."""

    def slowed(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return function(*arguments, **options)

    return slowed


def test_packing_a_store_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    packer = SimpleNamespace(bits=8, fingerprint="x", pack=slow(lambda images, name: images))
    images = MemoryReader(DescriptorSet(np.zeros((3, 2, 1), np.uint8)))
    build_store(tmp_path / "store", images, ["a", "b", "c"], packer, 2, model="m", source="s")
    assert "packing: 0 of 3 images" in capsys.readouterr().err


def test_checksums_and_refinements_are_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(checksums, "checksum", slow(checksums.checksum))
    (tmp_path / "list.txt").write_text("a.jpg,3,2\n")
    validation.record_checksums([tmp_path / "list.txt"])
    assert f"checksums of {tmp_path}" in capsys.readouterr().err
    validation.validate([tmp_path / "list.txt"])
    assert "checksum of list.txt" in capsys.readouterr().err
    monkeypatch.setattr(refinement, "nearest", slow(refinement.nearest))
    monkeypatch.setattr(refinement, "superglobal_lists", slow(refinement.superglobal_lists))
    vectors = np.eye(4, dtype=np.float32)
    refinement.refine(refinement.Lists.search(vectors, vectors, 3), "superglobal")
    told = capsys.readouterr().err
    assert "searching the global descriptors" in told
    assert "refining the first stage: superglobal" in told
