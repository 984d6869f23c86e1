"""Folders, lists and boxes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from ames_jax.extraction import listing
from ames_jax.extraction.listing import list_images
from ames_jax.runtime.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_folder_gives_ids_in_order_and_labels_from_sub_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/deep/1.png", "a/x.webp", "top.tif", "notes.txt", ".hidden/y.jpg", "a/.z.jpg")
    found = list_images(tmp_path)
    assert [(file.id, file.label) for file in found.files] == [
        ("a/x.webp", 0), ("b/2.JPG", 1), ("b/deep/1.png", 1), ("top.tif", -1),
    ]  # fmt: skip
    assert found.label_names == ["a", "b"]
    assert found.files[1].path == tmp_path / "b" / "2.JPG"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["x/a.jpg", "b,c.jpg"], [("x/a.jpg", -1), ("b,c.jpg", -1)]),
        (["a.jpg,640,480", "b,c.jpg,3,4"], [("a.jpg", -1), ("b,c.jpg", -1)]),
        (["a.jpg,17,640,480", "b.jpg,18,3,4"], [("a.jpg", 17), ("b.jpg", 18)]),
        (["a.jpg,5", "b.jpg,-1"], [("a.jpg", 5), ("b.jpg", -1)]),
    ],
)
def test_lists_of_all_layouts(tmp_path: Path, lines: list[str], expected: list[tuple[str, int]]) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    found = list_images(path, Path("/pictures"))
    assert [(file.id, file.label) for file in found.files] == expected
    assert found.files[0].path == Path("/pictures") / expected[0][0]
    assert list_images(path).root == tmp_path


def test_boxes_of_a_ground_truth_and_of_lines(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    (tmp_path / "boxes.txt").write_text("1,2,30.5,40\n\n")
    found = list_images(tmp_path / "list.txt", boxes=tmp_path / "boxes.txt")
    assert [file.box for file in found.files] == [(1, 2, 30.5, 40), None]
    truth = [{"bbx": [1.0, 2.0, 3.0, 4.0], "easy": [], "hard": [], "junk": []} for _ in range(2)]
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps({"gnd": truth, "imlist": [], "qimlist": []}))
    found = list_images(tmp_path / "list.txt", boxes=tmp_path / "gnd_x.pkl")
    assert [file.box for file in found.files] == [(1, 2, 3, 4)] * 2


@pytest.mark.parametrize(
    ("content", "boxes", "message"),
    [
        ("", None, "the list is empty"),
        ("a.jpg\na.jpg\n", None, "a.jpg is listed twice"),
        ("a.jpg\n../b.jpg\n", None, r"\.\./b\.jpg leads out of --root"),
        ("a.jpg\nb\u2028c.jpg\n", None, r"b\\u2028c\.jpg' holds a line break"),
        ("a.jpg,1,2\nb.jpg,3\n", None, r"line 2: expected `id,width,height` as in line 1"),
        ("a.jpg\n", "1,2,3,4\n5,6,7,8\n", "2 boxes for 1 images"),
        ("a.jpg\n", "9,2,3,4\n", "line 1: expected left,top,right,bottom"),
        ("a.jpg\n", "1,2,inf,4\n", "line 1: expected left,top,right,bottom"),
        ("a.jpg\n", "1,2,nan,4\n", "line 1: expected left,top,right,bottom"),
        ("a.jpg\n", "--7,2,1e20,²\n", "line 1: expected left,top,right,bottom"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, boxes: str | None, message: str) -> None:
    (tmp_path / "list.txt").write_text(content)
    (tmp_path / "boxes.txt").write_text(boxes or "")
    with pytest.raises(UserError, match=message):
        list_images(tmp_path / "list.txt", boxes=None if boxes is None else tmp_path / "boxes.txt")


def test_nothing_to_extract_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in this folder"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="no such folder or list"):
        list_images(tmp_path / "none")


def test_links_are_followed_and_what_is_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SUFFIXES", frozenset((".jpg", ".jfif")))
    monkeypatch.setattr(listing, "UNREAD", {".heic": "pillow-heif", ".jxl": "pillow-jxl-plugin"})
    touch(tmp_path / "elsewhere", "1.jpg", "deep/2.jfif")
    root = touch(tmp_path / "photos", "a.jpg", "b.heic", "c.HEIC", "d.jxl", "notes.txt", ".hidden.txt", "x.jpg/e.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "x.jpg" / "up").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    os.mkfifo(root / "pipe.jpg")
    found = [file.id for file in list_images(root).files]
    assert found == ["a.jpg", "linked/1.jpg", "linked/deep/2.jfif", "x.jpg/e.jpg"]
    told = capsys.readouterr().err.strip()
    assert told == (
        f"{root}: left out 2 .heic (pip install pillow-heif reads them), 1 .jxl (pip install pillow-jxl-plugin reads "
        "them), 1 .txt (no pictures), 1 links to a folder that they lie in, 1 links to nothing, 1 that are no regular files"
    )


@pytest.mark.parametrize("name", [b"\xff.jpg", b"a\nb.jpg", b"a\rb.jpg", b"a\r.jpg"])
def test_names_that_cannot_be_ids_are_found_before_extraction(tmp_path: Path, name: bytes) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    except OSError:
        pytest.skip("this file system does not take the name")
    with pytest.raises(UserError, match=r"is not UTF-8; rename|holds a line break; rename"):
        list_images(tmp_path)


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, float("inf"), 4], [4, 2, 1, 3]])
def test_boxes_of_a_ground_truth_that_are_none(tmp_path: Path, box: list) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    truth = [{"bbx": box, "easy": [], "hard": [], "junk": []}]
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps({"gnd": truth, "imlist": [], "qimlist": []}))
    with pytest.raises(UserError, match=r"gnd_x\.pkl"):
        list_images(tmp_path / "list.txt", boxes=tmp_path / "gnd_x.pkl")


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone since its name was read, say."""
    scan = os.scandir

    def gone(path: str) -> object:
        if Path(path).name == "inside":
            raise FileNotFoundError(2, "No such file or directory", path)
        return scan(path)

    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(os, "scandir", gone)
    with pytest.raises(UserError, match="inside: No such file or directory"):
        list_images(tmp_path)
