"""Checks before every route: who may ask; and headers of safety."""

from __future__ import annotations

import ipaddress
import secrets
from contextlib import suppress
from http.cookies import SimpleCookie
from urllib.parse import unquote, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ames_jax.serving.metrics import Metrics
from ames_jax.serving.request_body import LimitedBody, Limits

COOKIE = "ames_token"
# The page, which holds nothing of the collection, and what says that the server lives.
OPEN = ("/", "/health", "/docs")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT"}


def is_loopback(host: str) -> bool:
    """True if an address or name is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """The outermost layer of the application.

    Args:
      token: what every request must bring as `Authorization: Bearer TOKEN` or in the page's cookie; None: the server is
        on a loopback address, and only names of this machine are answered to, so that no page from elsewhere reaches it
        by a name of its own.
    """

    def __init__(self, app: ASGIApp, token: str | None, limits: Limits, metrics: Metrics) -> None:
        self._app, self._token, self._limits, self._metrics = app, token, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = LimitedBody(receive, self._limits)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFETY)
                # A route's own path, not the one asked for: ids are many.
                route = getattr(scope.get("route"), "path", "") or "none"
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._metrics.answered(method, route, message["status"])
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, body.receive, send_safely)
            return
        status, reason = refusal
        with suppress(HTTPException):  # else the asker, still sending, may not read the answer
            await body.drain()
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        await JSONResponse({"error": reason}, status, headers)(scope, body.receive, send_safely)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and origin.partition("://")[2] != host:
            return 403, "requests from pages of other servers are refused"
        if self._token is None:
            if not is_loopback(_name(host)):
                return 403, "this server answers to localhost only; start it with a token to give it another name"
            return None
        if scope["path"] in OPEN or scope["path"].startswith("/page/"):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = _cookie(headers.get("cookie", ""))
        if secrets.compare_digest(given.strip().encode(), self._token.encode()):
            return None
        return 401, "a token is needed, as 'Authorization: Bearer TOKEN', and this is not the one"


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(header: str) -> str:
    cookies = SimpleCookie()
    try:
        cookies.load(header)
    except Exception:  # a damaged header is no token
        return ""
    return unquote(cookies[COOKIE].value) if COOKIE in cookies else ""
