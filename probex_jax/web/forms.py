"""Upload forms of browsers, written to disk as they arrive.

Starlette's form parser spools files without a limit for all files together.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from probex_jax.errors import ProbexError
from probex_jax.web.models import plain_name
from probex_jax.web.uploads import MAX_FILES, Arrival, Refused, Uploads

# A form without its files.
_FORM_BYTES = 2**20
_HEADER_BYTES = 2**13
# Size of a form in files of the largest size.
_AT_ONCE = 8
# Uploads with progress messages, and pending messages per upload.
_TOLD, _WAITING = 256, 1000
_PROGRESS_S = 60


class Form:
    """The files of a form.

    Args:
      content_type: of the request.
      arrival: writes the files.
      tell: called with the name of a file and the number of new bytes.

    Raises:
      ProbexError: if it is not a form.
    """

    def __init__(self, content_type: str, arrival: Arrival, tell: Callable[[str, int], None]):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise ProbexError("expected a form with files")
        self._arrival, self._tell = arrival, tell
        self._header, self._value, self._name = b"", b"", ""
        with _damage():
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_header_field": self._on_header,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header_end,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_end,
                },
            )

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        """Reads the body.

        Raises:
          ProbexError: if the form is damaged or has too many files; `Refused` for a file.
        """
        with _damage():
            async for chunk in chunks:
                self._parser.write(chunk)
            self._parser.finalize()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header = _short(self._header + data[start:end])

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _short(self._value + data[start:end])

    def _on_header_end(self) -> None:
        header, value, self._header, self._value = self._header.lower(), self._value, b"", b""
        if header != b"content-disposition":
            return
        name = parse_options_header(value)[1].get(b"filename")
        if name is None:
            return
        if len(self._arrival.paths) == MAX_FILES:
            raise ProbexError(f"more than {MAX_FILES} files at once")
        self._name = plain_name(name.decode("utf-8", "replace"))
        self._arrival.begin(self._name)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name:
            self._arrival.write(data[start:end])
            self._tell(self._name, end - start)

    def _on_end(self) -> None:
        self._arrival.end()
        self._name = ""


def _short(header: bytes) -> bytes:
    if len(header) > _HEADER_BYTES:
        raise ProbexError("a header of the form is too long")
    return header


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except FormParserError:
        raise ProbexError("the form is damaged or incomplete") from None


class _Progress:
    """Progress of uploads, for browsers that ask."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, asyncio.Queue[dict[str, object]]] = OrderedDict()

    def of(self, upload: str) -> asyncio.Queue[dict[str, object]]:
        if upload not in self._queues:
            self._queues[upload] = asyncio.Queue(_WAITING)
        while len(self._queues) > _TOLD:
            self._queues.popitem(last=False)
        return self._queues[upload]

    def tell(self, upload: str, message: dict[str, object]) -> None:
        queue = self.of(upload)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(message)

    async def told(self, upload: str) -> AsyncIterator[str]:
        message: dict[str, object] = {}
        while message.get("msg") != "done":
            try:
                message = await asyncio.wait_for(self.of(upload).get(), _PROGRESS_S)
            except TimeoutError:
                message = {"msg": "done"}
            yield f"data: {json.dumps(message)}\n\n"
        self._queues.pop(upload, None)


def form_routes(uploads: Uploads, shown: Callable[[object], str]) -> APIRouter:
    """Replaces Gradio's upload routes, which have no limit for all files together.

    Args:
      uploads: keeps the files.
      shown: formats an error without paths of this machine.
    """
    router, progress = APIRouter(prefix="/gradio_api"), _Progress()

    @router.post("/upload")
    async def upload(request: Request, upload_id: str = "") -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            return PlainTextResponse("an upload needs a Content-Length", 411)
        if int(length) > _AT_ONCE * uploads.file_bytes + _FORM_BYTES:
            return PlainTextResponse("the form is too large", 413)

        def tell(name: str, size: int) -> None:
            progress.tell(upload_id, {"msg": "update", "orig_name": name, "chunk_size": size})

        try:
            with uploads.coming(int(length)) as arrival:
                form = Form(request.headers.get("content-type", ""), arrival, tell)
                await form.read(request.stream())
            return JSONResponse([str(path.relative_to(uploads.folder)) for path in arrival.paths])
        except (ProbexError, ClientDisconnect) as error:
            status = error.status if isinstance(error, Refused) else 400
            return PlainTextResponse(shown(error), status)
        finally:
            progress.tell(upload_id, {"msg": "done"})

    @router.get("/upload_progress")
    async def upload_progress(upload_id: str = "") -> StreamingResponse:
        return StreamingResponse(progress.told(upload_id), media_type="text/event-stream")

    return router
