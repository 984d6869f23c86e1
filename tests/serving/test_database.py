"""A server whose images are in a vector database: the answers of the files, and nothing is changed."""

from __future__ import annotations

import http_server
import pytest

from ames_jax.index import databases
from ames_jax.index.collection import SearchIndex
from ames_jax.index.database_index import write_index

pytest.importorskip("qdrant_client")


def test_a_server_of_a_database(made, server, photo, tmp_path, monkeypatch):
    address = f"qdrant:{tmp_path / 'qdrant'}#photos"
    write_index(SearchIndex.open(made / "index"), address)
    with http_server.served(made / "index", database=address) as client:
        for picture in ({"image": photo}, {"image": (made / "pictures" / "scene1" / "0.jpg").read_bytes()}):
            mine, other = (asked.post_form("/search", **picture).json for asked in (server, client))
            assert [hit["id"] for hit in mine["hits"]] == [hit["id"] for hit in other["hits"]]
        by_id = client.post_json("/search", {"id": "scene1/0.jpg"}).json["hits"]
        assert "scene1/0.jpg" not in [hit["id"] for hit in by_id]
        listed = client.get("/images?count=5&start=10").json
        assert (listed["images"], len(listed["ids"]), listed["changeable"]) == (12, 2, False)
        assert (
            client.get("/thumbnails/scene1/0.jpg").body[:2]
            == client.get("/images/scene1/0.jpg").body[:2]
            == b"\xff\xd8"
        )
        assert client.post_form("/explain?id=scene1/0.jpg", image=photo).json["pairs"]
        assert client.get("/images/nothing.jpg").status == 404
        for answer in (client.post_form("/images", image=photo), client.request("DELETE", "/images/scene1/0.jpg")):
            assert answer.status == 403
            assert answer.json["error"].startswith("this server searches a database")
        monkeypatch.setattr(databases.connect(address), "nearest", None)  # as where the database has gone
        gone = client.post_form("/search", image=photo)
        assert (gone.status, gone.json["error"].partition(":")[0]) == (503, "--database=qdrant")
