"""Text lists in all their forms: same rows whatever system wrote them, and the line that is wrong by its number."""

import numpy as np
import pytest

from ames_jax.data.lists import RELEASE, read_ids, read_labels, read_list, write_ids
from ames_jax.runtime.errors import UserError

FORMS = {
    "id": ("q/a.jpg\nq/b, c.jpg\n", None, None),
    "id,label": ("q/a.jpg,5\nq/b, c.jpg,-1\n", [5, -1], None),
    "id,width,height": ("q/a.jpg,640,480\nq/b, c.jpg,320,200\n", None, [[640, 480], [320, 200]]),
    "id,label,width,height": ("q/a.jpg,-1,640,480\nq/b, c.jpg,7,320,200\n", [-1, 7], [[640, 480], [320, 200]]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n",
        lambda text: text.replace(",6", " , 6"),
    ],
)
def test_a_list_is_the_same_whatever_wrote_it(tmp_path, form, change):
    text, labels, sizes = FORMS[form]
    (tmp_path / "list.txt").write_bytes(change(text).encode())
    images = read_list(tmp_path / "list.txt")
    assert images.ids == ["q/a.jpg", "q/b, c.jpg"]
    for found, expected in ((images.labels, labels), (images.sizes, sizes)):
        if expected is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found, expected)


def test_other_line_separators_are_part_of_an_id(tmp_path):
    (tmp_path / "list.txt").write_text("a\u2028b.jpg,1\nc\x85d.jpg,2\n")
    assert read_list(tmp_path / "list.txt").ids == ["a\u2028b.jpg", "c\x85d.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,5,640,480\nb.jpg,,640,480\n", r"line 2: expected `id,label,width,height` as in line 1"),
        ("a.jpg,5,640,480\nb.jpg,640,480\n", r"line 2: expected `id,label,width,height` as in line 1"),
        ("a.jpg,640,480\nb.jpg,480\n", "line 2: expected `id,width,height` as in line 1, found 'b.jpg,480'"),
        ("a.jpg,640,480\n\nb.jpg,1,480\n", "line 2: expected"),
        ("a.jpg,,640,480\nb.jpg,5,640,480\n", "line 1: expected `id,width,height`"),
        ("a.jpg,640,480\n,640,480\n", "line 2: expected"),
        ("a.jpg,640,480\nb.jpg,640,²\n", "line 2: expected"),
        ("a.jpg,640,480\nb.jpg,640,--7\n", "line 2: expected"),
        ("a.jpg,640,480\nb.jpg,640,99999999999999999999\n", "line 2: expected"),
        ("a.jpg\n", r"line 1: expected `id,width,height` or `id,label,width,height`, found 'a.jpg'"),
        ("", "the list is empty"),
        ("\n\n", "the list is empty"),
    ],
)
def test_a_line_that_is_not_as_the_first_is_named(tmp_path, text, message):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=rf"train.txt:? {message}|train.txt: {message}") as caught:
        read_list(tmp_path / "train.txt", RELEASE)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Dübendorf.jpg\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt: byte 1 is not UTF-8"):
        read_list(tmp_path / "latin.txt")
    with pytest.raises(UserError, match=r"absent.txt is missing"):
        read_list(tmp_path / "absent.txt")


def test_labels_are_text(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a,b.jpg, sacre coeur\nc.jpg\tlabel, with comma\n\n")
    assert read_labels(path) == {"a,b.jpg": "sacre coeur", "c.jpg": "label, with comma"}
    path.write_text("a.jpg,x\nb.jpg\n")
    with pytest.raises(UserError, match=r"line 2: expected `picture,label`, found 'b.jpg'"):
        read_labels(path)


def test_our_own_ids_come_back_as_they_were(tmp_path):
    ids = ["a\r", "\ufeffb", "c\u2028d", " e ", "f,1"]
    write_ids(tmp_path / "ids.txt", ids)
    assert read_ids(tmp_path / "ids.txt", 5) == ids
    with pytest.raises(UserError, match="5 entries for 6 images"):
        read_ids(tmp_path / "ids.txt", 6)
    for name, message in (("a\nb", "line break"), ("a\0b", "or NUL"), ("a\udcffb", r"'a\\udcffb' is not UTF-8")):
        with pytest.raises(UserError, match=message):
            write_ids(tmp_path / "ids.txt", ["first", name, "last"])
    assert read_ids(tmp_path / "ids.txt", 5) == ids
    with pytest.raises(UserError, match="is missing"):
        read_ids(tmp_path / "absent.txt", 6)
