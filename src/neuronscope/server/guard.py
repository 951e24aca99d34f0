"""What every request must pass, and what every answer carries: the server is for this machine and its own page."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any

from neuronscope.server.settings import Settings

COOKIE = "neuronscope"
"""Where the page keeps the token; scripts cannot read it."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'"
)
"""A report is one file with its styles and pictures in it; it is shown as a page of nobody's origin."""


class Guard:
    """ASGI middleware: the Host is ours, what changes something comes from our own page or from no page, bodies are
    small, and a token is there where one is asked for.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["method"], scope["path"], headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        most, seen, started = self._settings.max_body_bytes, 0, False

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _TooLargeError
            return message

        async def guarded(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name.decode("latin-1").lower() for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._app(scope, counted, guarded)
        except _TooLargeError:
            if not started:
                await _answer(send, *_too_large(most))

    def _refused(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        settings = self._settings
        host = headers.get("host", "")
        if host not in settings.hosts:
            return 403, f"This server is not called {host[:80]!r}.", f"Use http://{settings.hosts[0]}."
        if settings.token is not None and path.startswith("/api/") and path != "/api/health":
            given = headers.get("authorization", "").removeprefix("Bearer ") or _cookie(headers.get("cookie", ""))
            if not hmac.compare_digest(given.encode(), settings.token.encode()):
                return 401, "A token is needed.", "Send it as 'Authorization: Bearer <token>'."
        if method not in SAFE_METHODS:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            if origin is not None and origin not in {f"http://{host}", f"https://{host}"}:
                return 403, f"Pages of {origin[:80]!r} may not change anything here.", "Open this server's own page."
            if site is not None and site not in ("same-origin", "none"):
                return 403, "Pages from elsewhere may not change anything here.", "Open this server's own page."
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return 400, "The Content-Length is no number.", "Send the size of the body."
        if int(length) > settings.max_body_bytes:
            return _too_large(settings.max_body_bytes)
        return None


def _cookie(sent: str) -> str:
    found = SimpleCookie()
    with suppress(CookieError):
        found.load(sent)
    return found[COOKIE].value if COOKIE in found else ""


class _TooLargeError(Exception):
    pass


def _too_large(most: int) -> tuple[int, str, str]:
    return 413, f"The request is larger than {most} bytes.", "Send less at a time."


async def _answer(send: Any, status: int, error: str, details: str) -> None:
    body = json.dumps({"error": error, "details": details}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    headers += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
