"""The API answers as the offline search does, and changes what it serves."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import cv2
import http_server
import numpy as np
import photo_folder
import pytest
from PIL import Image

from ames_jax.index import uploading
from ames_jax.index.changes import changing, remove_images
from ames_jax.index.searcher import Searcher
from ames_jax.serving.app import PAGE

FOUND = ("id", "score", "global", "logit", "old_place")


@pytest.fixture(scope="module")
def searcher(made) -> Searcher:
    return Searcher(made / "index", **http_server.SETTINGS)


def as_found(hits) -> list[tuple]:
    return [(hit.id, hit.score, hit.global_similarity, hit.logit, hit.old_place) for hit in hits]


def assert_same(answer, result, places=5):
    """An answer of the API holds the hits of an offline search, which rounds alike for the same shapes."""
    for key, hits in (("hits", result.hits), ("first_stage", result.first_stage)):
        found = [tuple(hit[name] for name in FOUND) for hit in answer[key]]
        expected = as_found(hits)
        assert [hit[0] for hit in found] == [hit[0] for hit in expected]
        for one, other in zip(found, expected):
            assert one[1:] == pytest.approx(other[1:], abs=10**-places)


def test_a_picture_finds_what_the_offline_search_finds(made, server, searcher, photo):
    answer = server.post_form("/search?top=12", image=photo)
    assert answer.status == 200
    result = searcher.search(made / "asked" / "scene1" / "5.jpg", k=12)
    assert_same(answer.json, result)
    assert set(answer.json["seconds"]) == {"read", "wait", "extract", "global", "gather", "score", "rank"}
    assert [hit["score"] is None for hit in answer.json["hits"]] == [False] * 8 + [True] * 4


def test_a_smaller_shortlist_is_that_of_a_searcher_of_that_size(made, server, photo):
    result = Searcher(made / "index", shortlist=3, query_descriptors=30).search(made / "asked" / "scene1" / "5.jpg", 6)
    assert_same(server.post_form("/search?top=6&shortlist=3", image=photo).json, result)


def test_a_box_searches_for_a_part(made, server, searcher, photo):
    picture = photo_folder.photograph(1, 5)
    content = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    answer = server.post_form("/search?top=5&box=20,10,150.5,120", image=content)
    assert_same(answer.json, searcher.search(picture[10:120, 20:151], k=5))


def test_an_id_and_descriptors_are_queries(made, server, searcher):
    name = "scene2/1.jpg"
    result = searcher.search(made / "pictures" / name, k=5)
    by_id = server.post_json("/search?top=5", {"id": name})
    assert name not in [hit["id"] for hit in by_id.json["hits"]]
    assert_same(by_id.json, result)
    part = server.post_json("/search?top=5&box=0,0,190,160", {"id": name})
    assert part.json["hits"][0]["id"] == name
    [extracted] = searcher.extract([made / "pictures" / name])
    result = searcher.search(extracted, k=5)
    local, vector = extracted.local.features.tolist(), extracted.global_descriptor.tolist()
    assert_same(server.post_json("/search?top=5", {"descriptors": {"local": local, "global": vector}}).json, result)
    assert_same(server.post_json("/search?top=5", {"descriptors": {"local": local}}).json, result)


def test_many_at_a_time_get_their_own_answers(made, server, searcher):
    names = [f"scene{scene}/{view}.jpg" for scene in range(4) for view in range(3)] * 2
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda name: server.post_json("/search?top=4", {"id": name}), names))
    for name, answer in zip(names, answers):
        assert_same(answer.json, searcher.search(made / "pictures" / name, k=4))


def test_too_many_at_a_time_are_told_to_come_back(made, photo):
    with http_server.served(made / "index", places=1) as client, client.service.batcher.place():
        answer = client.post_form("/search", image=photo)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "try again" in answer.json["error"]
        assert client.get("/health").status == 200


def test_what_is_added_is_found_and_what_is_removed_is_not(own, photo):
    added = own.post_form("/images", image=photo, id="new one/a.jpg")
    assert (added.status, added.json) == (201, {"id": "new one/a.jpg", "images": 13})
    found = own.post_form("/search", image=photo).json
    assert found["query_id"] == "new one/a.jpg"  # the very picture, which is not among its own hits
    assert "new one/a.jpg" not in [hit["id"] for hit in found["hits"] + found["first_stage"]]
    hits = own.post_form("/search", image=photo + b" ").json["hits"]
    assert (hits[0]["id"], round(hits[0]["global"], 3)) == ("new one/a.jpg", 1.0)
    whole = own.post_form("/search?box=0,0,9999,9999", image=photo).json
    assert (whole["query_id"], whole["hits"][0]["id"]) == (None, "new one/a.jpg")
    place = quote("new one/a.jpg")
    assert own.get(f"/images/{place}").body == photo
    assert own.get(f"/thumbnails/{place}").headers["content-type"] == "image/jpeg"
    assert own.post_form("/images", image=photo, id="new one/a.jpg").status == 409
    assert own.post_form(f"/explain?id={place}", image=photo).status == 200
    assert own.request("DELETE", f"/images/{place}").json == {"id": "new one/a.jpg", "images": 12}
    assert "new one/a.jpg" not in [hit["id"] for hit in own.post_form("/search", image=photo).json["hits"]]
    for path in (f"/images/{place}", f"/thumbnails/{place}"):
        assert own.get(path).status == 404
    assert not list((own.service.path / "uploads").rglob("*.jpg"))
    named = own.post_form("/images", image=photo).json["id"]
    assert re.fullmatch("[0-9a-f]{20}", named)


def test_what_another_process_changes_is_changed_later(own, photo, monkeypatch):
    monkeypatch.setattr(uploading, "WAIT_SECONDS", 0.05)
    with changing(own.service.path):
        for answer in (own.post_form("/images", image=photo), own.request("DELETE", "/images/scene0/0.jpg")):
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert str(own.service.path) not in answer.json["error"]
    assert own.request("DELETE", "/images/scene0/0.jpg").status == 200


def test_an_upload_has_the_bits_of_extraction(made, own):
    picture = (made / "pictures" / "scene0" / "0.jpg").read_bytes()
    assert own.post_form("/images", image=picture, id="again").status == 201
    index = own.service.index
    both = index.read(index.rows(["scene0/0.jpg", "again"]))
    np.testing.assert_array_equal(both.features[0], both.features[1])
    np.testing.assert_array_equal(both.valid[0], both.valid[1])


def test_the_index_is_opened_again_when_it_was_changed(own):
    assert own.get("/health").json["images"] == 12
    remove_images(own.service.path, ["scene0/0.jpg"])
    deadline = time.monotonic() + 30
    while own.get("/health").json["images"] != 11:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert own.get("/thumbnails/scene0/0.jpg").status == 404


def test_an_index_that_cannot_be_opened_leaves_the_one_before(own, photo, capsys):
    facts = own.service.path / "index.json"
    content = facts.read_bytes()
    facts.write_bytes(content[:100])
    deadline = time.monotonic() + 30
    while not own.service.stale:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert own.post_form("/search", image=photo).status == 200
    assert b"ames_index_stale 1.0" in own.get("/metrics").body
    assert "the index of before is searched" in capsys.readouterr().err


def test_thumbnails_outlive_the_pictures(made, tmp_path):
    shutil.copytree(made / "index", tmp_path / "index")
    shutil.copytree(made / "pictures", tmp_path / "pictures")
    with http_server.served(tmp_path / "index", pictures=tmp_path / "pictures") as client:
        first = client.get("/thumbnails/scene1/0.jpg")
        assert Image.open(io.BytesIO(first.body)).size == (200, 160)
        shutil.rmtree(tmp_path / "pictures")
        assert client.get("/thumbnails/scene1/0.jpg").body == first.body
        gone = client.get("/images/scene1/0.jpg")
        assert (gone.status, gone.json) == (404, {"error": "the picture of 'scene1/0.jpg' is not where it was"})


def test_pictures_that_browsers_do_not_show_are_sent_as_jpeg(made, tmp_path):
    shutil.copytree(made / "pictures", tmp_path / "pictures")
    path = tmp_path / "pictures" / "scene0" / "0.jpg"
    Image.open(path).save(path, "TIFF")
    (tmp_path / "pictures" / "scene0" / "1.jpg").write_text("<script>alert(1)</script>")
    with http_server.served(made / "index", pictures=tmp_path / "pictures") as client:
        assert client.get("/images/scene0/0.jpg").body[:3] == b"\xff\xd8\xff"
        assert client.get("/images/scene0/1.jpg").status == 404


def test_an_explanation_joins_the_same_places_of_the_same_picture(server):
    for box in ("", "&box=50,40,180,150"):
        found = server.get(f"/explain?query=scene1/0.jpg&id=scene1/0.jpg{box}").json
        assert found["pairs"]
        values = np.array(found["pairs"])
        assert ((values >= 0) & (values <= 1)).all()
    whole = np.array(server.get("/explain?query=scene1/0.jpg&id=scene1/0.jpg").json["query_attention"])
    assert whole.shape[1] == 3
    part = np.array(found["query_attention"])
    assert part[:, 0].min() >= 50 / 200
    assert part[:, 1].max() <= 150 / 160


def test_collection_page_and_figures(server):
    listed = server.get("/images?start=3&count=2&find=SCENE1").json
    assert listed["images"] == 3
    assert server.get("/images?count=4&start=10").json["ids"] == ["scene3/1.jpg", "scene3/2.jpg"]
    assert server.get("/health").json["status"] == "ok"
    assert b'ames_requests_total{method="GET",route="/health",status="200"}' in server.get("/metrics").body
    api = server.get("/openapi.json").json
    assert {"multipart/form-data", "application/json"} == set(api["paths"]["/search"]["post"]["requestBody"]["content"])
    assert set(api["components"]["schemas"]["FoundImage"]["properties"]) == {*FOUND, "label", "probability", "through"}
    assert b"page.js" in server.get("/").body
    assert b"docs.js" in server.get("/docs").body


def test_the_page_needs_no_network_and_runs_nothing_from_elsewhere(server):
    for file in PAGE.iterdir():
        outside = re.findall(r"(?:https?:)?//[\w.]+\.\w+", file.read_text(encoding="utf-8"))
        assert set(outside) <= {"http://www.w3.org"}, file
        assert not re.search(r"innerHTML|document\.write|eval\(", file.read_text(encoding="utf-8"))
    headers = server.get("/").headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in server.get("/health", Origin="http://elsewhere.test").headers


def test_a_token_guards_all_but_page_and_health(made, photo):
    token = "a token of many characters"
    with http_server.served(made / "index", token=token) as client:
        for path in ("/", "/health", "/docs", "/page/page.js"):
            assert client.get(path).status == 200
        for path in ("/images", "/images/scene0/0.jpg", "/thumbnails/scene0/0.jpg", "/metrics", "/openapi.json"):
            for headers in ({}, {"Authorization": "Bearer other"}, {"Cookie": "ames_token=other"}):
                refused = client.request("GET", path, headers=headers)
                assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
                assert list(refused.json) == ["error"]
        assert client.post_form("/search", image=photo).status == 401
        assert client.request("DELETE", "/images/scene0/0.jpg").status == 401
        assert client.post_form("/search", {"Authorization": f"Bearer {token}"}, image=photo).status == 200
        assert client.get("/images", Cookie=f"a=b; ames_token={quote(token)}").status == 200
        assert client.get("/images", Authorization=f"bearer {token}", Host="photos.test").status == 200


def test_descriptors_larger_than_a_part_of_a_form_are_taken(server, searcher, made):
    [extracted] = searcher.extract([made / "pictures" / "scene0" / "0.jpg"])
    local = np.tile(extracted.local.features, (3, 1)).tolist()
    assert len(json.dumps(local)) > 100_000
    assert server.post_json("/search", {"descriptors": {"local": local}}).status == 200
