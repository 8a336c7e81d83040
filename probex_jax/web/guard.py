"""ASGI middleware in front of the page: allowed requests and security headers.

Starlette has TrustedHostMiddleware, but no check of Sec-Fetch-Site and Origin, and no limits for
slow bodies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from probex_jax.web.uploads import Refused

_ADDRESS_BYTES = 2**14
# Bodies that pause longer than this, or come more slowly than 8 KiB/s, are given up.
_SILENCE_S, _SLOWEST = 60.0, 2**13
# Answers before the end of a body: its rest must not be taken for the next request.
_EARLY = (400, 404, 405, 408, 413, 422, 503, 507)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Of documents in frames.
FRAMED = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'self'"
)
# Of the page: it fetches from this server, and shows frames of it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; frame-ancestors 'self'; base-uri 'none'; "
    "form-action 'none'"
)

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class RequestTimeout(Refused):
    """The rest of a body does not arrive."""

    status = 408


class Guard:
    """Refuses requests of other sites, and adds security headers to answers.

    Args:
      app: the guarded application.
      hosts: allowed Host headers, against DNS rebinding; none to allow all.
      proxies: names of reverse proxies, whose pages belong to this server even if the proxy
        does not pass its name on.
    """

    def __init__(self, app: App, hosts: Sequence[str] = (), proxies: Sequence[str] = ()):
        self._app = app
        self._hosts = frozenset(map(str.lower, hosts))
        self._proxies = frozenset(map(str.lower, proxies))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no WebSockets
            await send({"type": "websocket.close"})
            return
        if fault := self._fault(scope):
            await _refuse(send, *fault)
            return
        if scope["method"] not in ("GET", "HEAD"):
            receive = _with_timeouts(receive)

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message.get("headers", ())}
                added = [(name, value) for name, value in _HEADERS if name not in given]
                message["headers"] = [*message.get("headers", ()), *added]
                if scope["method"] not in ("GET", "HEAD") and message["status"] in _EARLY:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        await self._app(scope, receive, with_policy)

    def _fault(self, scope: Any) -> tuple[int, str] | None:
        """Why a request is refused: status and message."""
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if self._hosts and _hostname(host) not in self._hosts:
            return 421, "unknown Host header"
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            return 400, "Content-Length and Transfer-Encoding in one request"
        if len(scope["query_string"]) + len(scope["path"]) > _ADDRESS_BYTES:
            return 414, "the URL is too long"
        if scope["method"] not in ("GET", "HEAD") and self._cross_site(scope["headers"], host):
            return 403, "cross-site request refused"
        return None

    def _cross_site(self, headers: Sequence[tuple[bytes, bytes]], host: bytes) -> bool:
        """Whether a browser sends this for a page of another site; programs do not say."""
        sites = {value for name, value in headers if name == b"sec-fetch-site"}
        origins = [value for name, value in headers if name == b"origin"]
        is_same = sites == {b"same-origin"}
        return not (
            sites <= {b"same-origin", b"none"}
            and all(self._is_own(origin.decode("latin-1"), host, is_same) for origin in origins)
        )

    def _is_own(self, origin: str, host: bytes, is_same: bool) -> bool:
        """Whether an origin has the host and port of the Host header, or is a proxy.

        A proxy may have another port if the browser says that the page has the same origin.
        """
        scheme, _, authority = origin.partition("://")
        default = _DEFAULT_PORTS.get(scheme.lower())
        if default is None:  # includes "null", the origin of sandboxed frames
            return False
        page = _host_and_port(authority, default)
        own = _host_and_port(host.decode("latin-1"), default)
        if page is None or not page[0]:
            return False
        return page == own or (page[0] in self._proxies and (is_same or page[1] == default))


def _with_timeouts(receive: Any) -> Any:
    """Limits how long parts of a body may take; what comes after the body may take longer."""
    loop = asyncio.get_running_loop()
    deadline, more = loop.time() + _SILENCE_S, True

    async def receive_in_time() -> Message:
        nonlocal deadline, more
        if not more:
            return await receive()
        try:
            # Data that has arrived is taken, however late we ask for it.
            async with asyncio.timeout_at(min(deadline, loop.time() + _SILENCE_S)):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout("the rest of the body did not arrive in time") from None
        deadline += len(message.get("body", b"")) / _SLOWEST
        more = message.get("more_body", False)
        return message

    return receive_in_time


def _hostname(host: bytes) -> str | None:
    found = _host_and_port(host.decode("latin-1"), 0)
    return None if found is None else found[0]


def _host_and_port(authority: str, default: int) -> tuple[str | None, int] | None:
    try:
        parts = urlsplit(f"//{authority}")
        return parts.hostname, default if parts.port is None else parts.port
    except ValueError:  # an unclosed bracket or an invalid port
        return None


_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
    (b"vary", b"accept"),
]


async def _refuse(send: Any, status: int, line: str) -> None:
    body = f"{line}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
