"""The command `python -m ames_jax.search serve`: parameters are the flags, docstrings their help."""

from __future__ import annotations

import importlib
import signal
import socket
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from etils import epy

from ames_jax.commands.search_flags import SearcherFlags
from ames_jax.runtime.command_line import check_paths
from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.flag_values import Count, CountOrZero, Scale, Size
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():  # help needs none of them, and other commands do without these packages
    import uvicorn

    from ames_jax.report import search_results
    from ames_jax.serving import app, guard, request_body, service

PACKAGES = "fastapi uvicorn python-multipart prometheus-client"
LEAST_TOKEN = 16  # characters


def serve(
    flags: SearcherFlags,
    *,
    host: str = "127.0.0.1",
    port: CountOrZero = 8000,
    token: Annotated[str | None, Parameter(env_var="AMES_JAX_TOKEN", show_default=False)] = None,
    queue: Count = 64,
    upload: Size = 20 * 2**20,
    pixels: Count = 64_000_000,
    upload_seconds: Scale = 30,
    labels: str | None = None,
) -> None:
    """Serve an index: a page in the browser and an API.

    Args:
      host: Address to listen on; any but this machine's own needs a token.
      port: Port to listen on (0: a free one).
      token: What every request must bring; better in the environment variable, which other users cannot see.
      queue: Requests that may be under way; more are told to come back (503).
      upload: Bytes of a request.
      pixels: Pixels of a picture that is sent.
      upload_seconds: Time that a request may take to arrive.
      labels: What pictures show, told with every image: the word folder (the name of their folder), or a file with lines of
        picture,label.
    """
    check_paths(labels=Path(labels) if labels not in (None, "folder") else None)
    with requires(PACKAGES, "search serve"):
        for package in PACKAGES.replace("-", "_").split():
            importlib.import_module(package)
    if token is None and not guard.is_loopback(host):
        raise UserError(f"--host={host} can be reached by other machines: give a --token that requests must bring")
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        advice = 'python -c "import secrets; print(secrets.token_urlsafe())" makes one'
        raise UserError(f"--token: expected at least {LEAST_TOKEN} ASCII characters; {advice}")
    limits = request_body.Limits(upload=upload, pixels=pixels, seconds=upload_seconds)
    known = search_results.Labels.read(labels) if labels else search_results.Labels({})
    with _listen(host, port) as listening:
        with Progress("opening the index"):
            served = service.Service(flags.index, flags.open, queue, flags.pictures, known.of)
        config = uvicorn.Config(app.make_app(served, limits, token), log_level="warning", access_log=False)
        address = f"[{host}]" if ":" in host else host
        count = f"{len(served.index):,} images"
        print(f"{flags.index}: {count} at http://{address}:{listening.getsockname()[1]} (Ctrl-C ends)", flush=True)
        # What is under way is answered, then uvicorn passes the signal on; the end was asked for and is no failure.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, taken before the index is opened, so that a port in use is told at once."""
    if port >= 2**16:
        raise UserError(f"--port={port}: expected a port below {2**16:,}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: cannot listen there ({error}); give another --port") from error
