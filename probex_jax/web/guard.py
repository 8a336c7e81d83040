"""What stands before the page: which requests go through, and what browsers are told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from probex_jax.web.uploads import Refused, Uploads

# All that the page itself asks for. What Gradio has beyond that, such as files by their path on
# this machine, is not there.
_READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|assets/.*|static/.*)"
    r"|/gradio_api/(upload_progress|heartbeat/\w+|startup-events)"
    r"|/api(/(forest|search|describe))?"
)
_EVENT = "/gradio_api/run/predict"
# Whose bodies are files.
_FILES = ("/api/search", "/api/describe", "/gradio_api/upload")
_EVENT_BYTES = 2**18
_ADDRESS_BYTES = 2**14
_SESSION_CHARACTERS = 100
# Bodies are waited for no longer than this, and not for those that come more slowly than 8 KiB/s.
_SILENCE_S, _SLOWEST = 60.0, 2**13
# Answers that do not wait for the end of a body: what is left of it is not the next request.
_EARLY = (400, 408, 411, 413, 422, 503, 507)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; frame-src 'self' data: "
    "blob:; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Silent(Refused):
    """The rest of a body does not come."""

    status = 408


class Guard:
    """ASGI middleware: refuses what the page does not need, and says what browsers may do with it.

    Args:
      app: what is guarded.
      uploads: the only files that an event may be about.
      events: number of each event that the page has, to how many files each of its values may be.
      hosts: names by which this server may be asked, so that no other site's name, led here by its
        DNS, is taken for it; none to take every name.
      proxies: names of proxies in front, whose pages are this server's even if the proxy does not
        pass its name on.
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
        if scope["type"] != "http":  # nobody here speaks over a WebSocket
            await send({"type": "websocket.close"})
            return
        if fault := self._fault(scope):
            await _refuse(send, *fault)
            return
        if scope["method"] not in ("GET", "HEAD"):
            receive = _patiently(receive)
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
        """Why a request is refused: a status, and a line."""
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if self._hosts and _hostname(host) not in self._hosts:
            return 421, "asked by a name that is not this server's"
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            return 400, "two lengths of one body"
        if len(scope["query_string"]) + len(scope["path"]) > _ADDRESS_BYTES:
            return 414, "the address is too long"
        method, path = scope["method"], scope["path"]
        if method not in ("GET", "HEAD") and self._cross_site(scope["headers"], host):
            return 403, "pages of other sites may not send anything to this server"
        if method in ("GET", "HEAD"):
            known = _READ.fullmatch(path) is not None
        else:
            known = method in ("POST", "PUT") and path in (*_FILES, _EVENT)
        return None if known else (404, "there is no such page")

    def _cross_site(self, headers: Sequence[tuple[bytes, bytes]], host: bytes) -> bool:
        """Whether a browser says that a page of another site sends this; programs say nothing."""
        sites = {value for name, value in headers if name == b"sec-fetch-site"}
        origins = [value for name, value in headers if name == b"origin"]
        is_same = sites == {b"same-origin"}
        return not (
            sites <= {b"same-origin", b"none"}
            and all(self._is_own(origin.decode("latin-1"), host, is_same) for origin in origins)
        )

    def _is_own(self, origin: str, host: bytes, is_same: bool) -> bool:
        """Whether an origin has the host and port that this server is asked by, or is a proxy.

        A proxy may have a port of its own if the browser says that the page is of the same origin.
        """
        scheme, _, authority = origin.partition("://")
        default = _DEFAULT_PORTS.get(scheme.lower())
        if default is None:  # also the origin "null", of sandboxed frames
            return False
        page = _host_and_port(authority, default)
        own = _host_and_port(host.decode("latin-1"), default)
        if page is None or not page[0]:
            return False
        return page == own or (page[0] in self._proxies and (is_same or page[1] == default))

    def _event(self, body: bytes) -> bytes:
        """An event of the page, in which files are named by their paths on this machine.

        A component of Gradio takes whatever looks like a file for one, reads it or fetches it. So
        there are files where the page has files, sent here, and plain values elsewhere.
        """
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("an event is JSON") from None
        files = self._values(event)
        if files is None:
            raise Refused("the page has no such event; load it again")
        values = zip(event["data"], files, strict=True)
        data = [self._files(value, most) if most else _plain(value) for value, most in values]
        known = {"data": data, "fn_index": event["fn_index"], "session_hash": _session(event)}
        if isinstance(trigger := event.get("trigger_id"), int):
            known["trigger_id"] = trigger
        return json.dumps(known).encode()

    def _values(self, event: Any) -> Sequence[int] | None:
        """How many files each value of an event may be; None where the page has no such event."""
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
            raise Refused("the file is not here any more; send it again")
        return {
            "path": str(path),
            "orig_name": path.name,
            "meta": {"_type": "gradio.FileData"},
        }


def _plain(value: Any) -> str | float | None:
    if value is not None and not isinstance(value, str | int | float):
        raise Refused("a value of an event is a text or a number")
    return value


def _session(event: Message) -> str:
    """The browser's name for its visit: without one Gradio would make up a visit each time."""
    name = event.get("session_hash")
    if not isinstance(name, str) or not 0 < len(name) <= _SESSION_CHARACTERS:
        raise Refused("an event names its session")
    return name


async def _body(receive: Any) -> bytes:
    parts, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused("gone before it was said")
        parts += message.get("body", b"")
        more = message.get("more_body", False)
        if len(parts) > _EVENT_BYTES:
            raise Refused("an event is too long")
    return bytes(parts)


def _patiently(receive: Any) -> Any:
    """Waits for the parts of a body, but not for ever; for what comes after it, it does."""
    loop = asyncio.get_running_loop()
    deadline, more = loop.time() + _SILENCE_S, True

    async def patiently() -> Message:
        nonlocal deadline, more
        if not more:
            return await receive()
        try:
            # What is there already is taken, however late we ask for it.
            async with asyncio.timeout_at(min(deadline, loop.time() + _SILENCE_S)):
                message = await receive()
        except TimeoutError:
            raise Silent("the rest did not come in time") from None
        deadline += len(message.get("body", b"")) / _SLOWEST
        more = message.get("more_body", False)
        return message

    return patiently


def _replayed(body: bytes, receive: Any) -> Any:
    """Gives the body, and then what comes after it."""
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
    except ValueError:  # brackets that do not close, or a port that is none
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
