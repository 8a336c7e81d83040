"""A server that answers as a test says, without a socket."""

import sys

from huggingface_hub.errors import HfHubHTTPError

from probex_jax.model_files import http

FILE = bytes(range(256)) * 4
HTTP_ERROR = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
library = sys.modules[HTTP_ERROR.__module__.partition(".")[0]]  # httpx, or what came after it


class Server:
    """Gives prepared answers in turn, the last one again and again; None is an honest one."""

    def __init__(self, monkeypatch):
        self.answers, self.requests, self.waits, self.clock = [None], [], [], 0.0
        transport = library.MockTransport(self._answer)
        session = library.Client(transport=transport)
        errors = (library.HTTPError, library.InvalidURL)
        monkeypatch.setattr(http, "http_session", lambda name: (session, errors))
        monkeypatch.setattr(http.random, "uniform", lambda a, b: b)
        monkeypatch.setattr(http, "_pause", lambda wait_s, stopped: self.waits.append(wait_s))
        monkeypatch.setattr(http.time, "monotonic", lambda: self.clock)

    def _answer(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer or part(request)


def part(request, status=206, content=None, etag='"e"', **headers):
    """An honest answer, but for what is said otherwise; headers of None are left out."""
    begin, end = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
    end = min(end + 1, len(FILE))
    content = FILE[begin:end] if content is None else content
    honest = {"content-range": f"bytes {begin}-{end - 1}/{len(FILE)}", "etag": etag}
    honest["content-length"] = str(end - begin)
    honest |= {name.replace("_", "-"): text for name, text in headers.items()}
    known = {name: text for name, text in honest.items() if text is not None}
    return library.Response(status, headers=known, stream=Body(content))


class Body(library.SyncByteStream):
    """Bytes, or pieces, or what a function yields; not more than are asked for."""

    def __init__(self, content):
        self.pieces = [content] if isinstance(content, bytes) else content

    def __iter__(self):
        yield from self.pieces


def answer(**changes):
    return lambda request: part(request, **changes)


def status(code, reason="", **headers):
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    extensions = {"reason_phrase": reason.encode()} if reason else {}
    return lambda request: library.Response(
        code, headers=headers, extensions=extensions, stream=Body(b"{}")
    )


def endless(size=2**16):
    while True:
        yield bytes(size)
