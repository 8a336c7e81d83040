"""What stands before the page: which requests go through, and what browsers are told."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from probex_jax.errors import ProbexError
from probex_jax.web.uploads import Uploads

# All that the page itself asks for. What Gradio has beyond that, such as files by their path on
# this machine, is not there.
_READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|assets/.*|static/.*)"
    r"|/gradio_api/(queue/data|upload_progress|heartbeat/\w+|startup-events)"
    r"|/api(/(forest|search|describe))?"
)
_EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
# Whose bodies are files.
_FILES = ("/api/search", "/api/describe", "/gradio_api/upload")
_EVENT_BYTES = 2**18
_ADDRESS_BYTES = 2**14
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; frame-src 'self' data: "
    "blob:; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """ASGI middleware: refuses what the page does not need, and says what browsers may do with it.

    Args:
      app: what is guarded.
      uploads: the only files that an event may be about.
      events: number of each event that the page has, to how many values it says.
      hosts: names by which this server may be asked, so that no other site's name, led here by its
        DNS, is taken for it; none to take every name.
    """

    def __init__(
        self, app: App, uploads: Uploads, events: Mapping[int, int], hosts: Sequence[str] = ()
    ):
        self._app, self._uploads, self._events = app, uploads, events
        self._hosts = frozenset(hosts)

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
        if scope["path"] in _EVENTS:
            try:
                receive = _replayed(self._event(await _body(receive)), receive)
            except ProbexError as error:
                await _refuse(send, 400, str(error))
                return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_policy)

    def _fault(self, scope: Any) -> tuple[int, str] | None:
        """Why a request is refused: a status, and a line."""
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if self._hosts and _hostname(host) not in self._hosts:
            return 421, "asked by a name that is not this server's"
        if len(scope["query_string"]) + len(scope["path"]) > _ADDRESS_BYTES:
            return 414, "the address is too long"
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            known = _READ.fullmatch(path) is not None
        else:
            known = method in ("POST", "PUT") and path in (*_FILES, *_EVENTS)
        return None if known else (404, "there is no such page")

    def _event(self, body: bytes) -> bytes:
        """An event of the page, in which files are named by their paths on this machine.

        A component of Gradio takes whatever looks like a file for one, reads it or fetches it. So
        nothing else passes that has a path or an address than what was sent here.
        """
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            raise ProbexError("an event is JSON") from None
        if not self._is_of_the_page(event):
            raise ProbexError("the page has no such event; load it again")
        return json.dumps(self._with_files(event)).encode()

    def _is_of_the_page(self, event: Any) -> bool:
        if not isinstance(event, dict):
            return False
        number, data = event.get("fn_index"), event.get("data")
        return (
            isinstance(number, int)
            and isinstance(data, list)
            and self._events.get(number) == len(data)
        )

    def _with_files(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._with_files(item) for item in value]
        if not isinstance(value, dict):
            return value
        if not value.keys() & {"path", "url", "meta", "is_stream"}:
            return {name: self._with_files(item) for name, item in value.items()}
        path = self._uploads.held(str(value.get("path")))
        if path is None:
            raise ProbexError("the file is not here any more; send it again")
        return {
            "path": str(path),
            "orig_name": path.name,
            "meta": {"_type": "gradio.FileData"},
        }


async def _body(receive: Any) -> bytes:
    parts, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ProbexError("gone before it was said")
        parts += message.get("body", b"")
        more = message.get("more_body", False)
        if len(parts) > _EVENT_BYTES:
            raise ProbexError("an event is too long")
    return bytes(parts)


def _replayed(body: bytes, receive: Any) -> Any:
    """Gives the body, and then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _hostname(host: bytes) -> str | None:
    try:
        return urlsplit(f"//{host.decode('latin-1')}").hostname
    except ValueError:  # brackets that do not close
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
