"""A set appears in the cache whole or not at all, whoever else builds it and however a build ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ames_jax.runtime.errors import UserError
from ames_jax.scenes import LANDMARKS, build, building

NAME = f"landmarks-{LANDMARKS.key()}"


def fill_with(monkeypatch: pytest.MonkeyPatch, text: str = "", error: BaseException | None = None) -> None:
    """Lets a build write one short file, and then fail where there is an error."""

    def fill(target: Path, *_: object) -> None:
        (target / "data.txt").write_text(text)
        if error is not None:
            raise error

    monkeypatch.setattr(building, "_fill", fill)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_it_lies_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    fill_with(monkeypatch, "new")
    assert build() == home / NAME
    assert (home / NAME / "data.txt").read_text() == "new"
    building.check(home / NAME)


def test_nothing_remains_of_a_build_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fill_with(monkeypatch, "half", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build(root=tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fill_with(monkeypatch, error=OSError(28, "No space left on device"))
    with pytest.raises(UserError, match=r"No space left on device.*AMES_JAX_HOME"):
        build(root=tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="AMES_JAX_HOME"):
        build(root=tmp_path / "file")


def test_a_failed_rebuild_keeps_the_old_set(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    fill_with(monkeypatch, "old")
    build()
    fill_with(monkeypatch, "half", RuntimeError("killed"))
    with pytest.raises(RuntimeError):
        build(rebuild=True)
    assert (build() / "data.txt").read_text() == "old"


def test_what_a_killed_build_left_is_cleared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leftover = tmp_path / f".{NAME}.partial"
    leftover.mkdir()
    (leftover / "half.txt").write_text("half")
    fill_with(monkeypatch, "new")
    folder = build(root=tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["data.txt", building.MANIFEST]
    assert not leftover.exists()


def test_of_two_builders_one_builds_and_the_other_waits(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    filled = []

    def fill(target: Path, *_: object) -> None:
        second.start()
        assert not (home / NAME).exists()
        second.join(0.3)
        assert second.is_alive()
        filled.append(target)

    second = threading.Thread(target=build)
    monkeypatch.setattr(building, "_fill", fill)
    first = build()
    second.join()
    assert len(filled) == 1
    building.check(first)
