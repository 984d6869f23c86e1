"""Whatever is sent: a status of 4xx, one line of JSON that says why, and the server lives on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import struct
import types
import zlib

import http_server
import pytest
from http_server import BOUNDARY, FORM, form
from PIL import Image

from ames_jax.serving.app import make_app
from ames_jax.serving.request_body import Limits

JSON = {"Content-Type": "application/json"}


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(file, kind)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than its bytes hold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A whole picture of 100 million pixels in few bytes."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


NO_PICTURES = {
    "text": b"no picture",
    "empty": b"",
    "one byte": b"\xff",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zip": b"PK\x03\x04" + bytes(100),
    "truncated jpeg": picture("JPEG")[:600],
    "head of a jpeg": picture("JPEG")[:20],
    "truncated png": picture("PNG")[:900],
    "truncated webp": picture("WEBP")[:100],
    "truncated tiff": picture("TIFF")[:100],
    "promised pixels": png_of_size(60_000, 60_000),
    "negative size": png_of_size(2**31, 1),
    "too few bytes": png_of_size(1000, 1000),
    "bomb": bomb(),
    "zeros": bytes(5000),
}
FORM_TARGETS = ("/search", "/images", "/explain?id=scene0/0.jpg")


@pytest.fixture(scope="module")
def good() -> bytes:
    return picture("JPEG")


def assert_refused(answer, status=None):
    assert 400 <= answer.status < 500, (answer.status, answer.body)
    assert status in (None, answer.status), answer.body
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["error"]
    assert answer.json["error"]
    assert b"\n" not in answer.body.strip()
    assert b"/tmp/" not in answer.body, "a path of the server"
    assert b" at 0x" not in answer.body, "an address in its memory"


@pytest.fixture(scope="module", autouse=True)
def lives_on(server, made):
    """After all of them a picture is searched for as before."""
    yield
    photo = (made / "asked" / "scene1" / "5.jpg").read_bytes()
    assert server.post_form("/search", image=photo).status == 200
    assert server.get("/health").json["images"] == 12
    assert server.service.batcher.taken == 0


@pytest.mark.parametrize("target", FORM_TARGETS)
@pytest.mark.parametrize("name", NO_PICTURES)
def test_no_pictures(server, target, name):
    assert_refused(server.post_form(target, image=NO_PICTURES[name]), 422)


# Of a form that breaks off, Starlette leaves the temporary file to the garbage collector, which closes it with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("target", FORM_TARGETS)
def test_forms(server, target, good):
    for fields in ({"photo": good}, {"image": "a text"}, {}, {"file": good, "image": "x"}):
        assert_refused(server.post_form(target, **fields), 422)
    two = form(image=good).replace(f"--{BOUNDARY}--\r\n".encode(), b"") + form(image=good)
    many = form(**{f"field{i}": "x" for i in range(20)}, image=good)
    for body in (two, many, b"", b"no form", form(image=good)[:-200], f"--{BOUNDARY}\r\n\r\n".encode()):
        assert_refused(server.request("POST", target, body, FORM))
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "text/plain", "image/jpeg", "", "x" * 3000):
        assert_refused(server.request("POST", target, form(image=good), {"Content-Type": kind}))


BODIES = {
    "nothing": b"",
    "no json": b"{",
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "no utf-8": b'{"id": "\xff"}',
    "empty": b"{}",
    "other key": b'{"image": "x"}',
    "id and more": b'{"id": "scene0/0.jpg", "top": 3}',
    "number": b'{"id": 3}',
    "unknown id": b'{"id": "scene9/9.jpg"}',
    "path": b'{"id": "../../../etc/passwd"}',
    "absolute path": b'{"id": "/etc/passwd"}',
    "nul": b'{"id": "scene0/0.jpg\\u0000"}',
    "no descriptors": b'{"descriptors": {}}',
    "no local": b'{"descriptors": {"local": []}}',
    "narrow": b'{"descriptors": {"local": [[1, 2, 3]]}}',
    "ragged": json.dumps({"descriptors": {"local": [[0.5] * 128, [0.5] * 127]}}).encode(),
    "nan": json.dumps({"descriptors": {"local": [[float("nan")] * 128]}}).encode(),
    "infinite": json.dumps({"descriptors": {"local": [[1e300] * 128]}}).encode(),
    "texts": b'{"descriptors": {"local": [["a"]]}}',
    "short global": json.dumps({"descriptors": {"local": [[0.5] * 128], "global": [1.0]}}).encode(),
    "long global": json.dumps({"descriptors": {"local": [[0.5] * 128], "global": [1.0] * 512}}).encode(),
    "too many": json.dumps({"descriptors": {"local": [[]] * 5001}}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_json(server, name):
    assert_refused(server.request("POST", "/search", BODIES[name], JSON))


QUERIES = (
    "top=0", "top=-1", "top=x", "top=1001", "top=1e9", "shortlist=0", "shortlist=9", "shortlist=x", "top=", "box=1,2,3",
    "box=a,b,c,d", "box=9,9,1,1", "box=5000,5000,6000,6000", "box=nan,0,9,9", "box=0,0,inf,inf", "box=-9,-9,-1,-1",
    "box=1,1,1,1", "box=", f"box={'1' * 300}",
)  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_parameters(server, good, query):
    assert_refused(server.post_form(f"/search?{query}", image=good), 422)


PATHS = (
    ("GET", "/images/scene9/9.jpg"), ("GET", "/images/../../etc/passwd"), ("GET", "/images/%2e%2e%2f%2e%2e%2fetc/passwd"),
    ("GET", "/images//etc/passwd"), ("GET", "/images/"), ("GET", "/images/scene0%00"), ("GET", "/thumbnails/../index.json"),
    ("GET", "/thumbnails/x"), ("DELETE", "/images/x"), ("DELETE", "/images/../model"), ("GET", "/explain"),
    ("GET", "/explain?query=scene0/0.jpg"), ("GET", "/explain?query=scene0/0.jpg&id=x"),
    ("GET", "/explain?query=x&id=scene0/0.jpg"),
    ("GET", "/images?count=0"), ("GET", "/images?start=-1"), ("GET", "/images?count=9999"),
    ("GET", f"/images?find={'x' * 201}"),
    ("GET", "/nothing"), ("GET", "/page/../app.py"), ("GET", "/page/%2e%2e/app.py"), ("GET", "/page/"), ("GET", "/search"),
    ("PUT", "/search"), ("PATCH", "/images/scene0/0.jpg"), ("DELETE", "/search"), ("POST", "/health"), ("OPTIONS", "/search"),
)  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_paths_and_methods(server, method, path):
    assert_refused(server.request(method, path))


IDS = (
    "../x",
    "/x",
    "a/../b",
    ".hidden",
    "a/.b",
    "x" * 101,
    "a//b",
    "a\\b",
    "a\nb",
    "a\x00b",
    "a.",
    "a/b/c/d/e",
    "",
    "a:b",
    "~",
)


@pytest.mark.parametrize("image_id", IDS)
def test_ids_of_uploads_never_lead_elsewhere(server, good, image_id):
    assert_refused(server.post_form("/images", image=good, id=image_id), 422)


@pytest.mark.parametrize("kind", [FORM["Content-Type"], JSON["Content-Type"]])
def test_an_asker_who_goes_away_is_no_error_of_the_server(kind):
    headers = [(b"host", b"localhost"), (b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"", "headers": headers}
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    searcher, batcher = types.SimpleNamespace(shortlist=8), types.SimpleNamespace(place=contextlib.nullcontext)
    app = make_app(types.SimpleNamespace(searcher=searcher, batcher=batcher), Limits(), None)
    asyncio.run(app(scope, receive, send))  # else it raises, and the log has a traceback
    assert sent[0]["status"] == 400


def test_too_large(server):
    body = form(image=bytes(3 * 2**20))
    assert_refused(server.request("POST", "/search", body, FORM), 413)
    pieces = (body[:100] if piece == 0 else bytes(2**20) for piece in range(101))  # 100 MB whose length nobody has told
    assert_refused(
        server.request("POST", "/images", pieces, {**FORM, "Transfer-Encoding": "chunked"}, chunked=True), 413
    )
    assert_refused(server.request("POST", "/search", bytes(3 * 2**20), JSON), 413)


def test_too_slow(made, good):
    body = form(image=good)
    with http_server.served(made / "index", limits=Limits(seconds=0.5)) as client:
        for sent in (body[:100], b""):
            with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
                head = f"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM['Content-Type']}\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + sent)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 408")
            assert json.loads(answer.rpartition(b"\r\n\r\n")[2]) == {
                "error": "the request took more than 0.5 s to arrive"
            }
        assert client.post_form("/search", image=good).status == 200


def test_pages_and_names_from_elsewhere(server, good):
    assert_refused(server.post_form("/images", {"Origin": "http://elsewhere.test"}, image=good), 403)
    assert_refused(server.post_form("/images", {"Origin": "null"}, image=good), 403)
    for host in ("elsewhere.test", "127.0.0.1.elsewhere.test", "192.168.0.1:80", "[", ""):
        assert_refused(server.get("/images", Host=host), 403)
    own = f"http://127.0.0.1:{server.port}"
    assert server.post_form("/search", {"Origin": own}, image=good).status == 200
