"""A server of an index in this process, on a free port of this machine, and how tests ask it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ames_jax.extraction.backbone import Backbone
from ames_jax.index.database_index import DatabaseIndex
from ames_jax.index.searcher import Searcher
from ames_jax.serving.app import make_app
from ames_jax.serving.request_body import Limits
from ames_jax.serving.service import Service

BOUNDARY = "the-boundary"
SETTINGS = {"shortlist": 8, "query_descriptors": 30}


class Answer:
    """Status, headers (names in lower case) and body of an answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.body = response.status, response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a server, each time over a new connection."""

    def __init__(self, port: int, service: Service | None = None) -> None:
        self.port, self.service = port, service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, chunked: bool = False
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post_json(self, path: str, value: Any) -> Answer:
        return self.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})

    def post_form(self, path: str, headers: dict[str, str] | None = None, **fields: bytes | str) -> Answer:
        """Bytes are sent as files, texts as texts."""
        return self.request("POST", path, form(**fields), {**FORM, **(headers or {})})


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(**fields: bytes | str) -> bytes:
    """A body of `FORM`."""
    parts = []
    for name, value in fields.items():
        is_file = isinstance(value, bytes)
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"' + (
            '; filename="f.jpg"' if is_file else ""
        )
        parts.append(head.encode() + b"\r\n\r\n" + (value if is_file else value.encode()) + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@contextmanager
def served(
    index: Path,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    places: int = 32,
    pictures: Path | None = None,
    database: str | None = None,
    **more: Any,
) -> Iterator[Client]:
    """A server that ends with the block; more: arguments of `Service`."""
    options = {**SETTINGS, "pictures": pictures}

    def opened(backbone: Backbone | None) -> Searcher:
        return Searcher(DatabaseIndex.connect(index, database) if database else index, backbone=backbone, **options)

    service = Service(index, opened, places, pictures, **more)
    app = make_app(service, limits or Limits(upload=2 * 2**20, pixels=4_000_000, seconds=20), token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(listening.getsockname()[1], service)
        finally:
            server.should_exit = True
            thread.join()
