"""A vector database in place of the index's own files: the same results, and records of another version are refused."""

from __future__ import annotations

import json

import pytest

from ames_jax import search
from ames_jax.index.collection import SearchIndex
from ames_jax.index.databases import Qdrant
from ames_jax.runtime.errors import UserError

pytest.importorskip("qdrant_client")


def query(folder, made, capsys, *flags: str) -> list:
    capsys.readouterr()
    command = [
        "query",
        f"--index={folder}",
        f"--images={made / 'asked'}",
        "--shortlist=7",
        "--top=12",
        "--json",
        *flags,
    ]
    assert search.main(command) == 0
    return json.loads(capsys.readouterr().out)["queries"]


@pytest.mark.usefixtures("one_device")
def test_the_database_gives_the_results_of_the_files(made, grown, tmp_path, capsys):
    index, database = tmp_path / "index", f"qdrant:{tmp_path / 'qdrant'}#photos"
    command = ["index", "--add", f"--descriptors={grown / 'set'}", f"--out={index}", f"--database={database}"]
    assert search.main(command) == 0
    ours, theirs = query(index, made, capsys), query(index, made, capsys, f"--database={database}")
    for mine, other in zip(ours, theirs, strict=True):
        assert [hit["id"] for hit in mine["hits"]] == [hit["id"] for hit in other["hits"]]
        for hit, same in zip(mine["hits"], other["hits"], strict=True):
            assert hit["old_place"] == same["old_place"]
            for key in ("score", "logit"):
                assert hit[key] is same[key] is None or hit[key] == pytest.approx(same[key], abs=1e-6)
    assert search.main(["remove", f"--index={index}", f"--ids={ours[0]['hits'][0]['id']}"]) == 0
    with pytest.raises(UserError, match="not of this version of the index; write them again"):
        query(index, made, capsys, f"--database={database}")


@pytest.mark.parametrize("address", ["qdrant:", "qdrant:place", "qdrant:#name", "milvus:place#name"])
def test_what_is_no_database_is_one_line(made, address):
    with pytest.raises(UserError, match=r"expected qdrant:PATH_OR_URL#COLLECTION"):
        Qdrant.open(address, SearchIndex.open(made / "index"))


@pytest.mark.usefixtures("one_device")
def test_a_collection_that_is_not_there_is_one_line(made, tmp_path, capsys):
    with pytest.raises(UserError, match="the collection 'photos' gives no answer"):
        query(made / "index", made, capsys, f"--database=qdrant:{tmp_path / 'qdrant'}#photos")
