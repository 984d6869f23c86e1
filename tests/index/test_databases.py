"""Vector databases in place of an index's own files: the same results, kept up to date, on all that run here."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ames_jax import search
from ames_jax.index import database_index, databases
from ames_jax.index.collection import SearchIndex
from ames_jax.index.database_index import DatabaseIndex, key_of, write_index
from ames_jax.index.searcher import Searcher
from ames_jax.runtime.errors import UserError

# What of an index a machine needs that searches a database.
HEAD = ("index.json", "about.json", "sift_statistics.npz")
PACKAGES = {"qdrant": ("qdrant_client",), "milvus": ("pymilvus", "milvus_lite"), "pgvector": ("psycopg", "pgserver")}


# Servers that are tested, too: KIND:URL with spaces between.
SERVERS = os.environ.get("AMES_JAX_TEST_DATABASES", "").split()


@pytest.fixture(scope="module", params=[*PACKAGES, *SERVERS])
def address_of(request, tmp_path_factory) -> Iterator[Callable[[str], str]]:
    """Addresses of collections, by name, of a database in this process, started for the tests, or on a server."""
    if request.param in SERVERS:
        pytest.importorskip(PACKAGES[request.param.partition(":")[0]][0])
        run = uuid.uuid4().hex[:8]
        yield lambda name: f"{request.param}#ames_jax_test_{run}_{name}"
        return
    *_, package = [pytest.importorskip(name) for name in PACKAGES[request.param]]
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "pgvector":
        # Of root's tests the server runs as another user, who may not enter pytest's own folders.
        with tempfile.TemporaryDirectory(prefix="ames_jax_pg_") as folder:
            server = package.get_server(folder)
            yield lambda name: f"pgvector:{server.get_uri()}#{name}"
            server.cleanup()
    else:
        yield lambda name: f"{request.param}:{root / name}.db#{name}"


@pytest.fixture
def head(made, tmp_path) -> Path:
    """A folder with nothing of the index but the model and the settings."""
    shutil.copytree(made / "index" / "model", tmp_path / "head" / "model")
    for name in HEAD:
        shutil.copy(made / "index" / name, tmp_path / "head")
    return tmp_path / "head"


def asked(made: Path) -> list[Path]:
    return sorted((made / "asked").glob("*/*.jpg"))


def same_results(made: Path, files: SearchIndex, database: SearchIndex) -> None:
    """Checks that both give the same images, places and scores for every query."""
    ours, theirs = (
        Searcher(index, shortlist=7, query_descriptors=30).search_many(asked(made), 12) for index in (files, database)
    )
    for mine, other in zip(ours, theirs, strict=True):
        for hit, same in zip(mine.hits + mine.first_stage, other.hits + other.first_stage, strict=True):
            assert (hit.id, hit.old_place) == (same.id, same.old_place)
            assert hit.global_similarity == pytest.approx(same.global_similarity, abs=1e-6)
            for value, again in ((hit.score, same.score), (hit.logit, same.logit)):
                assert value is again is None or value == pytest.approx(again, abs=1e-6)


@pytest.mark.usefixtures("one_device")
def test_the_database_gives_the_results_of_the_files_and_is_kept_up_to_date(made, grown, head, address_of, capsys):
    index, address = grown / "index", address_of("photos")
    assert write_index(SearchIndex.open(index), address) == (12, 0)
    opened = DatabaseIndex.connect(head, address)
    assert len(opened) == 12
    with pytest.raises(UserError, match="refine=expand reads the global descriptors of the index, and those of"):
        Searcher(opened, refine="expand")
    same_results(made, SearchIndex.open(index), opened)
    picture = made / "pictures" / "scene0" / "0.jpg"  # of the index, known by its path
    assert Searcher(opened, query_descriptors=30).search(picture).query_id == "scene0/0.jpg"
    names = [opened.listing("", start, 5) for start in (0, 5, 10)]
    assert [total for total, _ in names] == [12] * 3
    assert sorted(name for _, part in names for name in part) == sorted(SearchIndex.open(index).ids)
    total, found = opened.listing("scene1", 0, 20)
    assert (total, sorted(found)) == (3, [f"scene1/{view}.jpg" for view in range(3)])

    add = ["index", "--add", f"--descriptors={grown / 'set'}", f"--out={index}", f"--database={address}"]
    assert search.main(add) == 0
    assert "8 records written, 0 removed, 12 left as they were" in capsys.readouterr().out
    assert search.main(["remove", f"--index={index}", "--ids=scene1/0.jpg,scene2/4.jpg", f"--database={address}"]) == 0
    assert "0 records written, 2 removed, 18 left as they were" in capsys.readouterr().out
    same_results(made, SearchIndex.open(index), DatabaseIndex.connect(head, address))
    with pytest.raises(UserError, match=r"holds no image 'scene1/0\.jpg'"):
        DatabaseIndex.connect(head, address).rows(["scene1/0.jpg"])


@pytest.mark.usefixtures("one_device")
def test_records_of_another_model_are_refused_and_replaced(made, head, address_of, monkeypatch):
    address = address_of("other")
    monkeypatch.setattr(database_index, "_version", lambda index: "another")
    write_index(SearchIndex.open(made / "index"), address)
    opened = DatabaseIndex.connect(head, address)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"of another model or other settings than .*head; write them again"):
        DatabaseIndex.connect(head, address)
    assert write_index(SearchIndex.open(made / "index"), address) == (12, 0)
    with pytest.raises(UserError, match="of another model or other settings than the index"):
        opened.read(np.array([key_of("scene0/0.jpg")]))


def test_a_collection_that_is_not_there_is_one_line(head, address_of):
    with pytest.raises(UserError, match="nowhere holds no image; search index --database=… writes them"):
        DatabaseIndex.connect(head, address_of("nowhere"))


@pytest.mark.parametrize("address", ["qdrant:", "qdrant:place", "qdrant:#name", "redis:place#name", "place#name"])
def test_what_is_no_address_is_one_line(head, address):
    with pytest.raises(UserError, match=r"expected qdrant:PATH_OR_URL#COLLECTION, milvus:"):
        DatabaseIndex.connect(head, address)


@pytest.mark.parametrize("address", ["qdrant:http://127.0.0.1:9#name", "pgvector:postgresql://127.0.0.1:9/x#name"])
def test_a_server_that_is_not_there_is_one_line(head, address):
    pytest.importorskip("qdrant_client")
    pytest.importorskip("psycopg")
    with pytest.raises(databases.Unavailable, match=r"#name (gives no answer|: cannot be opened)"):
        DatabaseIndex.connect(head, address)


def test_two_ids_of_one_key_are_refused(made, monkeypatch, tmp_path):
    monkeypatch.setattr(database_index, "key_of", lambda name: len(name))
    with pytest.raises(UserError, match=r"the ids \['scene0/0.jpg', .* have one key in a database"):
        write_index(SearchIndex.open(made / "index"), f"qdrant:{tmp_path / 'never'}#photos")
    assert not (tmp_path / "never").exists()


def test_flags_that_need_the_files_are_refused(made):
    command = ["query", f"--index={made / 'index'}", f"--images={made / 'asked'}", "--database=qdrant:a#b"]
    with pytest.raises(UserError, match="--labels measures whole rankings"):
        search.main([*command, "--labels=folder"])
    with pytest.raises(UserError, match="--faiss belongs to the index's own search"):
        search.main([*command, "--faiss=nprobe=3"])
