"""What every request passes first: who asks, from where, how much, how often; and what each answer tells a browser.

Host and Origin are looked at on every method, so that neither a name that somebody points at this machine (DNS
rebinding) nor a form on another page (CSRF) reaches anything. Beyond this machine a token is needed: as
`Authorization: Bearer`, as the password of Basic, or as a cookie, which /login?token=... sets.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import as_read_by
from .views.rendering import login_page

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none, a form sends no origin either
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
COOKIE = "femtobooth-studio"
MIB = 2**20
BODIES = (  # largest bodies by what an address begins with
    ("/api/v1/models", 16 * 2**30),
    ("/api/v1/uploads", 256 * MIB),
    ("/api/v1/sets", 8 * MIB),
    ("/api/v1/classify", 64 * MIB),
    ("/api/v1/embed", 64 * MIB),
    ("/api/v1/search", 64 * MIB),
    ("/sdapi/v1/", 64 * MIB),
    ("/v2/", 64 * MIB),
    ("/", MIB),
)
LOOKS = ("/static/", "/style.css")
"""What anybody may have: it is the same in every studio, and the way in needs it."""
SILENCE = 15.0  # seconds without a byte of a body
SLOWEST = 10_000  # bytes a second of a body, after the first `SILENCE`
LONGEST = 2048  # characters of an address
BURST, RATE = 600.0, 150.0  # requests at once, and a second, of one client
TRIES, AGAIN = 10.0, 0.2  # wrong tokens at once, and a second
MOST_CLIENTS = 10_000


class Served(Protocol):
    """What the guard knows of the server that it stands before."""

    host: str
    port: int
    token: str | None

    @property
    def names(self) -> Sequence[str]:
        """Names under which others know this machine, beside its own."""


class Buckets:
    """Count what clients may still do: so many at once, and so many a second."""

    def __init__(self, burst: float, rate: float) -> None:
        self.burst, self.rate = burst, rate
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, client: str) -> float:
        """Say how much a client has left."""
        now = time.monotonic()
        left, then = self._left.get(client, (self.burst, now))
        return min(self.burst, left + (now - then) * self.rate)

    def take(self, client: str) -> bool:
        """Take one from a client; False where it has none left."""
        left = self.left(client)
        if left < 1:
            return False
        self._left[client] = (left - 1, time.monotonic())
        self._left.move_to_end(client)
        if len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return True


class Guard:
    """Answer what must not pass, and put the headers on what does."""

    def __init__(self, app: ASGIApp, studio: Served) -> None:
        self.app, self.studio = app, studio
        self.names = {"localhost", studio.host.strip("[]").lower(), *map(str.lower, studio.names)}
        self.beyond = not is_loopback(studio.host)
        if self.beyond:
            self.names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self.requests, self.tries = Buckets(BURST, RATE), Buckets(TRIES, AGAIN)
        self.secret = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(("/api/", "/v1/", "/v2/", "/sdapi/")):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._answer(scope)
        if answer is None:
            most = next(size for start, size in BODIES if scope["path"].startswith(start))
            await self.app(scope, _limited(receive, most), sending)
        else:
            await answer(scope, receive, sending)

    def _answer(self, scope: Scope) -> Response | None:
        """Give the answer to what goes no further; None for what does."""
        headers, method, client = Headers(scope=scope), scope["method"], (scope.get("client") or ("?", 0))[0]
        refused = self._of_elsewhere(scope, headers, method)
        if refused:
            return _refused(scope, 403, *refused)
        if not self.requests.take(client):
            return _refused(scope, 429, "too many requests", "wait a moment", {"retry-after": "2"})
        return self._of_shape(scope, headers, method) or self._of_nobody(scope, headers, client)

    def _of_shape(self, scope: Scope, headers: Headers, method: str) -> Response | None:
        """Refuse a method, an address or a body that nothing here takes."""
        if method not in METHODS:
            return _refused(scope, 405, f"no method {method[:20]} here", None, {"allow": ", ".join(METHODS)})
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > LONGEST:
            return _refused(scope, 414, "the address is too long", None)
        length = headers.get("content-length", "0")
        most = next(size for start, size in BODIES if scope["path"].startswith(start))
        if not re.fullmatch(r"\d{1,18}", length, re.ASCII) or int(length) > most:
            return _refused(scope, 413, f"the body is larger than {most // MIB} MiB", "send less at once")
        return None

    def _of_elsewhere(self, scope: Scope, headers: Headers, method: str) -> tuple[str, str] | None:
        """Say what is wrong with where a request comes from, or was meant to go."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._ours(hosts[0]):
            return "this is not the host that was asked for", f"open http://localhost:{self.studio.port}/"
        origins = headers.getlist("origin")
        if len(origins) > 1 or (origins and urlsplit(origins[0]).netloc.lower() != hosts[0].lower()):
            return "the request comes from another site's page", "use the studio's own pages, or no Origin"
        fetched = headers.get("sec-fetch-site", "same-origin")
        if fetched not in ("same-origin", "none"):
            opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if method not in ("GET", "HEAD") or not opens or scope["path"].startswith(("/api/", "/login")):
                return "the request comes from another site's page", "open the address itself"
        return None

    def _ours(self, host: str) -> bool:
        """Tell whether a Host header names this server: no name can that others may point here."""
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?", host)
        if not found:
            return False
        name = found[1].strip("[]").lower()
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.beyond or address.is_loopback

    def _of_nobody(self, scope: Scope, headers: Headers, client: str) -> Response | None:
        """Ask for the token, where one is needed."""
        token = self.studio.token
        if scope["path"] == "/login":
            return self._login(Request(scope), client)
        if token is None or self._knows(headers, token) or scope["path"].startswith(LOOKS):
            return None
        if headers.get("authorization") or headers.get("cookie", "").find(COOKIE) >= 0:
            if self.tries.left(client) < 1:
                return _refused(scope, 429, "too many wrong tokens", "wait a minute", {"retry-after": "60"})
            self.tries.take(client)
        asks = {"www-authenticate": 'Bearer realm="femtobooth studio"'}
        if _by_a_person(scope, headers):
            return login_page("")
        return _refused(scope, 401, "a token is needed", "it was printed when the server began", asks)

    def _knows(self, headers: Headers, token: str) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return _same(given.strip(), token)
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except ValueError:
                return False
            return _same(given, token)
        cookies = Request({"type": "http", "headers": headers.raw}).cookies
        return COOKIE in cookies and _same(cookies[COOKIE], self._cookie(token))

    def _cookie(self, token: str) -> str:
        """Give what a browser keeps in place of the token, until the studio ends."""
        return hmac.new(self.secret, token.encode(), hashlib.sha256).hexdigest()

    def _login(self, request: Request, client: str) -> Response:
        token = self.studio.token
        if token is not None:
            if self.tries.left(client) < 1:
                return _refused(request.scope, 429, "too many wrong tokens", "wait a minute", {"retry-after": "60"})
            if not _same(request.query_params.get("token", ""), token):
                self.tries.take(client)
                if _by_a_person(request.scope, request.headers):
                    return login_page("This is not the token." if "token" in request.query_params else "")
                return _refused(request.scope, 401, "this is not the token", "it was printed when the server began")
        answer = RedirectResponse("/", 303, {"cache-control": "no-store"})
        if token is not None:
            answer.set_cookie(COOKIE, self._cookie(token), httponly=True, samesite="strict", path="/")
        return answer


def _by_a_person(scope: Scope, headers: Headers) -> bool:
    """Tell whether a page was asked for, in place of which the way in is shown."""
    return (
        scope["method"] == "GET" and "text/html" in headers.get("accept", "") and not scope["path"].startswith("/api/")
    )


def _limited(receive: Receive, most: int) -> Receive:
    """Make a `receive` that gives no more than `most` bytes of a body, and waits no longer than it should."""
    began, size, done = time.monotonic(), 0, False

    async def receiving() -> Message:
        nonlocal size, done
        if done:  # what comes now is that the client has gone, whenever that is
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), SILENCE)
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly") from None
        size += len(message.get("body", b""))
        done = message["type"] != "http.request" or not message.get("more_body", False)
        if size > most:
            raise HTTPException(413, f"the body is larger than {most // MIB} MiB")
        if not done and time.monotonic() - began > SILENCE + size / SLOWEST:
            raise HTTPException(408, "the body came too slowly")
        return message

    return receiving


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host's address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refusal(problem: str, way_out: str | None = None) -> dict[str, Any]:
    """Give an error that no setting has to do with."""
    told = {"setting": None, "problem": problem, "way_out": way_out}
    return {"error": told, "errors": [told]}


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _refused(
    scope: Scope, status: int, problem: str, way_out: str | None, headers: dict[str, str] | None = None
) -> Response:
    return JSONResponse(as_read_by(scope["path"], status, refusal(problem, way_out)), status, headers)
