"""Who may ask, and what every answer says to the browser.

The threats (docs/serve.md): another web page in the same browser, which can send requests here (cross-site) or point its own name at
127.0.0.1 (DNS rebinding); another user of the machine, or of the network where the server was told to be reachable.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import parse_qs, urlsplit

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), browsing-topics=()"),
    (b"cache-control", b"no-store"),
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE = ("GET", "HEAD")
TOKEN_LENGTH = 16
"""Characters that a token has at least."""


def equal(a: str, b: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing about them."""
    return hmac.compare_digest(hashlib.sha256(a.encode()).digest(), hashlib.sha256(b.encode()).digest())


def session_of(token: str) -> str:
    """What the cookie holds: it opens this server as the token does, and does not give the token away."""
    return hmac.new(token.encode(), b"ctfoundry session", "sha256").hexdigest()


class Guard:
    """Wraps the application: checks each request before anything of it is looked at, and sets the headers of each answer.

    Parameters
    ----------
    names : host names, without port, under which the server is reached.
    public : paths that hold nothing but the page's own code.
    refusal : the page for a person without token.
    report : told of errors that nobody foresaw.
    """

    def __init__(
        self,
        app: Any,
        *,
        token: str,
        cookie: str,
        names: Collection[str],
        public: Collection[str],
        refusal: bytes,
        report: Callable[[BaseException], None],
    ) -> None:
        self.app = app
        self.cookie = cookie
        self.names = frozenset(name.lower() for name in names)
        self._token, self._session = token, session_of(token)
        self._public, self._refusal, self._report = frozenset(public), refusal, report

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def sent(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name for name, _ in HEADERS}
                kept = [(k, v) for k, v in message["headers"] if k.lower() not in own]
                message = message | {"headers": [*kept, *HEADERS]}
            await send(message)

        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is not None:
            await _answer(sent, *refused)
            return
        if scope["path"] == "/" and self._by_address(scope):
            # the page itself is the answer, not a redirect: a strict cookie would not travel with one that another site began
            cookie = f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"

            async def with_cookie(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    message = message | {"headers": [*message["headers"], (b"set-cookie", cookie.encode())]}
                await sent(message)

            await self.app(scope, receive, with_cookie)
            return
        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            self._report(error)
            if not started:
                await _answer(sent, 500, _json("the server failed at this request", "see its terminal"))

    def _refused(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, bytes, str] | None:
        """Why a request is not served: status, body and its type; None when it is."""
        hosts = [v for k, v in scope["headers"] if k.lower() == b"host"]
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if _name(host) not in self.names:
            return 421, _json("this server is not reached under that name", "open the address that it printed"), "json"
        if scope["method"] not in SAFE:
            origin = headers.get("origin", "")
            if urlsplit(origin).netloc.lower() != host or urlsplit(origin).scheme not in ("http", "https"):
                return 403, _json("requests that change something come from this server's own page", ""), "json"
        fetched = headers.get("sec-fetch-site", "none")
        opened = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if fetched not in ("none", "same-origin") and not opened:
            return 403, _json("another site asked for this", ""), "json"
        if scope["path"] in self._public or self._known(headers) or (scope["path"] == "/" and self._by_address(scope)):
            return None
        if scope["path"] == "/":
            return 401, self._refusal, "html"
        return 401, _json("the server does not know you", "open the address with ?token= that it printed"), "json"

    def _by_address(self, scope: dict[str, Any]) -> bool:
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])
        return len(given) == 1 and equal(given[0], self._token)

    def _known(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and equal(given.strip(), self._token):
            return True
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie and equal(value, self._session):
                return True
        return False


def _name(host: str) -> str:
    """The name in a Host header, without its port; "" for nonsense."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""


def _json(what: str, do: str) -> bytes:
    return json.dumps({"error": {"what": what, "do": do}}).encode()


async def _answer(send: Any, status: int, body: bytes, kind: str = "json") -> None:
    full = {"json": b"application/json", "html": b"text/html; charset=utf-8"}[kind]
    # what was not read of the request's body is not waited for
    headers = [(b"content-type", full), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
