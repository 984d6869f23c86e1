"""JSON that does not hold what it should is told by file and key."""

import json

import pytest

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json, refuse_other

KEYS = {"name": str, "images": int, "share": float, "kind": {"a", "b"}, "files": [{"bytes": int}], "note?": str}
GOOD = {"name": "x", "images": 3, "share": 0.5, "kind": "a", "files": [{"bytes": 1}], "more": None}


def test_what_it_should_hold_is_given(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    assert read_json(tmp_path / "a.json", keys=KEYS) == GOOD


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 1), ("name", None), ("images", -1), ("images", 1.5), ("images", True), ("images", 2**60), ("share", "1"),
        ("share", None), ("kind", "c"), ("kind", []), ("files", {}), ("files", [1]), ("files", [{"bytes": "1"}]), ("note", 1),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_named(tmp_path, key, value):
    (tmp_path / "a.json").write_text(json.dumps(GOOD | {key: value}))
    with pytest.raises(UserError, match=rf"a.json: {key}.*: expected") as caught:
        read_json(tmp_path / "a.json", keys=KEYS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"images": NaN}', '{"images": Infinity}', "[" * 100_000, "{", "\udcff"])
def test_what_is_no_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"a.json: cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({key: value for key, value in GOOD.items() if key != "share"}))
    with pytest.raises(UserError, match=r"a.json: share is missing"):
        read_json(tmp_path / "a.json", keys=KEYS)


def test_a_key_that_earlier_versions_did_not_write_is_not_compared_with_them():
    refuse_other("x", {"k": 1}, {"k": 1, "inputs": "a"}, later=("inputs",), advice="")
    with pytest.raises(UserError, match="inputs was 'b', is 'a'"):
        refuse_other("x", {"k": 1, "inputs": "b"}, {"k": 1, "inputs": "a"}, later=("inputs",), advice="")
