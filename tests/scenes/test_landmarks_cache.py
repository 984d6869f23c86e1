"""A set appears in the cache in whole or not at all, whoever else builds it and however a build ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ames_jax.runtime.errors import UserError
from ames_jax.scenes import cache


def writer(text: str):
    return lambda target: (target / "data.txt").write_text(text)


def test_nothing_remains_of_a_build_that_fails(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        (target / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.publish(tmp_path / "set", fail, replace=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    def fill(target: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device.*AMES_JAX_HOME"):
        cache.publish(tmp_path / "set", fill, replace=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rebuild_keeps_the_old_set(tmp_path: Path) -> None:
    cache.publish(tmp_path / "set", writer("old"), replace=False)

    def fail(target: Path) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cache.publish(tmp_path / "set", fail, replace=True)
    cache.check(tmp_path / "set")
    assert (tmp_path / "set" / "data.txt").read_text() == "old"


def test_the_folder_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    seen = []

    def fill(target: Path) -> None:
        (target / "data.txt").write_text("new")
        seen.append((tmp_path / "set").exists())

    cache.publish(tmp_path / "set", fill, replace=False)
    assert seen == [False]
    cache.check(tmp_path / "set")


def test_the_second_of_two_builders_leaves_the_set_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "set"

    def slow(target: Path) -> None:
        cache.publish(folder, writer("first"), replace=False)  # another process, finished meanwhile
        (target / "data.txt").write_text("second")

    cache.publish(folder, slow, replace=False)
    assert (folder / "data.txt").read_text() == "first"
    cache.check(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_rebuilds_at_once_leave_a_whole_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    cache.publish(folder, writer("old"), replace=False)

    def slow(target: Path) -> None:
        cache.publish(folder, writer("first"), replace=True)
        (target / "data.txt").write_text("second")

    cache.publish(folder, slow, replace=True)
    cache.check(folder)
    assert (folder / "data.txt").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_leftovers_of_a_killed_build_go_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / ".set-old", tmp_path / ".set-young"
    for path in (old, young):
        path.mkdir()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    cache.publish(tmp_path / "set", writer("new"), replace=False)
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="AMES_JAX_HOME"):
        cache.publish(tmp_path / "file" / "set", writer("new"), replace=False)
