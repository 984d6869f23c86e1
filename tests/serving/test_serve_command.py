"""`python -m ames_jax.search serve`: what it refuses, and how it ends."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import time

import http_server
import processes
import pytest

from ames_jax import search
from ames_jax.commands import serve
from ames_jax.runtime.errors import UserError


def test_what_is_refused(made, monkeypatch):
    command = ["serve", f"--index={made / 'index'}"]
    with pytest.raises(UserError, match=r"--host=0.0.0.0 can be reached by other machines: give a --token"):
        search.main([*command, "--host=0.0.0.0"])
    with pytest.raises(UserError, match="--token: expected at least 16 ASCII characters"):
        search.main([*command, "--host=0.0.0.0", "--token=short"])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen there"):
        search.main([*command, f"--port={taken.getsockname()[1]}"])
    with pytest.raises(UserError, match="--port=99999999: expected a port below"):
        search.main([*command, "--port=99999999"])
    with pytest.raises(UserError, match="is not a search index"):
        search.main(["serve", f"--index={made / 'set'}", "--port=0"])
    monkeypatch.setattr(serve, "PACKAGES", "no-such-package")
    with pytest.raises(
        UserError, match=r"search serve needs a package that is missing .*: pip install no-such-package"
    ):
        search.main(command)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_lets_what_is_under_way_be_answered(made, photo):
    flags = [f"--index={made / 'index'}", "--port=0", "--shortlist=8", "--query-descriptors=30"]
    command = [sys.executable, "-m", "ames_jax.search", "serve", *flags]
    process = subprocess.Popen(command, env=processes.environment(), stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r"12 images at http://127.0.0.1:(\d+) ", line)
        assert found, line
        client = http_server.Client(int(found[1]))
        body, connections = http_server.form(image=photo), []
        for _ in range(4):
            connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
            connection.putrequest("POST", "/search")
            connection.putheader("Content-Type", http_server.FORM["Content-Type"])
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body[:100])
            connections.append(connection)
        deadline = time.monotonic() + 30
        while b"ames_searches_under_way 4.0" not in client.get("/metrics").body:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        while _accepts(client.port):
            assert time.monotonic() < deadline
        for connection in connections:
            connection.send(body[100:])
        assert [http_server.Answer(connection.getresponse()).status for connection in connections] == [200] * 4
        assert process.wait(30) == 0
    finally:
        for connection in connections:
            connection.close()
        process.kill()
        process.communicate()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    return True
