"""JSON that does not hold what it should is told by file and key."""

import json
import re

import pytest

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json, refuse_other
from ames_jax.runtime.schema import Between, check_keys

KEYS = {"name": str, "images": int, "share": float, "kind": {"a", "b"}, "files": [{"bytes": int}], "note?": str}
KEYS |= {"part": re.compile(r"part-\d"), "bits": range(8, 64, 8), "lam": Between(0, 1), "some": [int, ...]}
KEYS |= {"sums": {re.compile(r"\w+"): int}, "place": ({"folder": str}, [int], None)}
GOOD = {"name": "x", "images": 3, "share": 0.5, "kind": "a", "files": [{"bytes": 1}], "more": None, "part": "part-1"}
GOOD |= {"bits": 16, "lam": 1, "some": [0], "sums": {"a": 1}, "place": None}


def test_what_it_should_hold_is_given(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    assert read_json(tmp_path / "a.json", keys=KEYS) == GOOD


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 1), ("name", None), ("images", -1), ("images", 1.5), ("images", True), ("images", 2**60), ("share", "1"),
        ("share", None), ("kind", "c"), ("kind", []), ("files", {}), ("files", [1]), ("files", [{"bytes": "1"}]), ("note", 1),
        ("part", "part-x"), ("part", 1), ("bits", 12), ("bits", 64), ("bits", True), ("lam", 1.01), ("lam", True),
        ("some", []), ("sums", {"a": -1}), ("place", 1), ("place", ["a"]), ("place", {"folder": 1}),
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


@pytest.mark.parametrize("place", [{"folder": "a"}, [1], []])
def test_any_of_several_types_will_do(place):
    check_keys(GOOD | {"place": place}, KEYS, "a.json")


def test_other_keys_are_refused_where_there_must_be_none():
    check_keys({"name": "x"}, {"name": str}, "a.json", only=True)
    with pytest.raises(UserError, match=r"a.json: unknown key 'nam'; did you mean name\?"):
        check_keys({"name": "x", "nam": 1}, {"name": str}, "a.json", only=True)
    with pytest.raises(UserError, match=r"a.json: sums: unknown key '../x'; build it again"):
        check_keys(GOOD | {"sums": {"../x": 1}}, KEYS, "a.json", "build it again")


def test_a_key_that_earlier_versions_did_not_write_is_not_compared_with_them():
    refuse_other("x", {"k": 1}, {"k": 1, "inputs": "a"}, later=("inputs",), advice="")
    with pytest.raises(UserError, match="inputs was 'b', is 'a'"):
        refuse_other("x", {"k": 1, "inputs": "b"}, {"k": 1, "inputs": "a"}, later=("inputs",), advice="")
