"""ASGI middleware in front of the page: allowed requests and security headers.

Starlette has TrustedHostMiddleware, but no allow-list of paths, no check of Sec-Fetch-Site and
Origin, and no limits for slow bodies.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from probex_jax.web.uploads import Refused, Uploads

# All paths that the page needs. Gradio has more, such as files by their path on this machine.
_READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|assets/.*|static/.*)"
    r"|/gradio_api/(upload_progress|heartbeat/\w+|startup-events)"
    r"|/api(/(forest|search|describe|lineage))?|/lineage"
)
_EVENT = "/gradio_api/run/predict"
# Paths whose bodies are files.
_FILES = ("/api/search", "/api/describe", "/gradio_api/upload")
_EVENT_BYTES = 2**18
_ADDRESS_BYTES = 2**14
_SESSION_CHARACTERS = 100
# Bodies that pause longer than this, or come more slowly than 8 KiB/s, are given up.
_SILENCE_S, _SLOWEST = 60.0, 2**13
# Answers before the end of a body: its rest must not be taken for the next request.
_EARLY = (400, 408, 411, 413, 422, 503, 507)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; frame-src 'self' data: "
    "blob:; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class RequestTimeout(Refused):
    """The rest of a body does not arrive."""

    status = 408


class Guard:
    """Refuses requests that the page does not need, and adds security headers to answers.

    Args:
      app: the guarded application.
      uploads: the only files that events may name.
      events: number of each event of the page to the maximal number of files in each value.
      hosts: allowed Host headers, against DNS rebinding; none to allow all.
      proxies: names of reverse proxies, whose pages belong to this server even if the proxy
        does not pass its name on.
    """

    def __init__(
        self,
        app: App,
        uploads: Uploads,
        events: Mapping[int, Sequence[int]],
        hosts: Sequence[str] = (),
        proxies: Sequence[str] = (),
    ):
        self._app, self._uploads, self._events = app, uploads, events
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
        if scope["path"] == _EVENT:
            try:
                receive = _replayed(self._event(await _body(receive)), receive)
            except Refused as error:
                await _refuse(send, error.status, str(error))
                return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
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
        method, path = scope["method"], scope["path"]
        if method not in ("GET", "HEAD") and self._cross_site(scope["headers"], host):
            return 403, "cross-site request refused"
        if method in ("GET", "HEAD"):
            known = _READ.fullmatch(path) is not None
        else:
            known = method in ("POST", "PUT") and path in (*_FILES, _EVENT)
        return None if known else (404, "no such page")

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

    def _event(self, body: bytes) -> bytes:
        """A checked event of the page.

        Gradio's components read or fetch anything that looks like a file. So only uploaded files
        pass, only where the page expects files, and only plain values elsewhere.
        """
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("the event is not valid JSON") from None
        files = self._values(event)
        if files is None:
            raise Refused("no such event; reload the page")
        values = zip(event["data"], files, strict=True)
        data = [self._files(value, most) if most else _plain(value) for value, most in values]
        known = {"data": data, "fn_index": event["fn_index"], "session_hash": _session(event)}
        if isinstance(trigger := event.get("trigger_id"), int):
            known["trigger_id"] = trigger
        return json.dumps(known).encode()

    def _values(self, event: Any) -> Sequence[int] | None:
        """Maximal number of files in each value of an event; None if there is no such event."""
        if not isinstance(event, dict):
            return None
        number, data = event.get("fn_index"), event.get("data")
        if not isinstance(number, int) or not isinstance(data, list):
            return None
        files = self._events.get(number)
        return files if files is not None and len(files) == len(data) else None

    def _files(self, value: Any, most: int) -> Message | list[Message]:
        if most == 1:
            return self._file(value)
        if not isinstance(value, list) or len(value) > most:
            raise Refused(f"expected a list of at most {most} files")
        return [self._file(file) for file in value]

    def _file(self, value: Any) -> Message:
        path = self._uploads.held(str(value.get("path"))) if isinstance(value, dict) else None
        if path is None:
            raise Refused("the file has been removed; send it again")
        return {
            "path": str(path),
            "orig_name": path.name,
            "meta": {"_type": "gradio.FileData"},
        }


def _plain(value: Any) -> str | float | None:
    if value is not None and not isinstance(value, str | int | float):
        raise Refused("a value of the event is neither text nor number")
    return value


def _session(event: Message) -> str:
    """The session id of the browser: without one Gradio would make up a session each time."""
    name = event.get("session_hash")
    if not isinstance(name, str) or not 0 < len(name) <= _SESSION_CHARACTERS:
        raise Refused("the event has no valid session_hash")
    return name


async def _body(receive: Any) -> bytes:
    parts, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused("the client disconnected")
        parts += message.get("body", b"")
        more = message.get("more_body", False)
        if len(parts) > _EVENT_BYTES:
            raise Refused("the event is too long")
    return bytes(parts)


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


def _replayed(body: bytes, receive: Any) -> Any:
    """Receives the given body, then whatever follows."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


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
