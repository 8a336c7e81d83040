"""What stands before the page: which requests go through, and what browsers are told."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from probex_jax.web.uploads import Full, Uploads

# All that the page itself asks for. What Gradio has beyond that, such as files by their path on
# this machine, is not there.
_PAGE = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|assets/.*|static/.*|svelte/.*)"
    r"|/gradio_api/(queue/(join|data)|upload|upload_progress|heartbeat/\w+|startup-events|info/?"
    r"|cancel|reset/?|call/(v2/)?\w+(/\w+)?|theme\.css|app_id/?)"
    r"|/api(/\w+)?"
)
# Beside the files, what a form has around them.
_FORM_BYTES = 2**20
_FILES_AT_ONCE = 8
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
      uploads: whose limits bodies keep.
      hosts: names by which this server may be asked, so that no other site's name, led here by its
        DNS, is taken for it; none to take every name.
    """

    def __init__(self, app: App, uploads: Uploads, hosts: Sequence[str] = ()):
        self._app, self._uploads, self._hosts = app, uploads, frozenset(hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nobody here speaks over a WebSocket
            await send({"type": "websocket.close"})
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if fault := self._fault(scope, headers):
            await _refuse(send, *fault)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_policy)

    def _fault(self, scope: Any, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Why a request is refused: a status, and a line."""
        if self._hosts and _hostname(headers.get(b"host", b"")) not in self._hosts:
            return 421, "asked by a name that is not this server's"
        if not _PAGE.fullmatch(scope["path"]):
            return 404, "there is no such page"
        if scope["path"] == "/gradio_api/upload":
            return self._upload_fault(headers)
        return None

    def _upload_fault(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, "an upload has to say its length"
        if int(length) > _FILES_AT_ONCE * self._uploads.file_bytes + _FORM_BYTES:
            return 413, "more than is taken at once"
        try:
            self._uploads.check_room()
        except Full as error:
            return 503, str(error)
        return None


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
