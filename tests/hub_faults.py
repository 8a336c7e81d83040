"""How a hub for tests goes wrong: faults by chance, and misbehaviour asked for by path."""

import functools
import itertools
import random
import threading
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """What is to be sent: a status, headers, and bytes `begin` to `end` of a content.

    Args:
      content: bytes, or the path of a file.
      tail: chunks that follow those bytes.
      cut: number of bytes after which the connection is closed, whatever was announced.
      pace: seconds between a byte and the next.
      flip: whether each bit of the content is sent inverted.
    """

    status: int
    headers: dict[str, Any] = field(default_factory=dict)
    content: bytes | Path = b""
    begin: int = 0
    end: int = 0
    tail: Iterable[bytes] = ()
    cut: int | None = None
    pace: float = 0
    flip: bool = False

    @classmethod
    def of(cls, status, content, **headers):
        """Bytes as a whole."""
        return cls(status, headers, content, 0, len(content))

    @property
    def size(self):
        """Bytes in all of the content, of which a range is sent."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


class Dropped(Exception):
    """The connection is to be closed without an answer."""


@dataclass
class Faults:
    """Shares of the requests that go wrong, each in one way.

    A request's luck depends on the seed, on what it asks for, and on how often that was asked
    for before: threads that ask in another order have the same luck, and a retry has its own.

    Args:
      too_many: answered 429.
      unavailable: answered 503.
      dropped: connection closed in place of an answer.
      truncated: connection closed after half of the body.
      retry_after: the header of 429 and 503; None for none.
    """

    seed: int = 0
    too_many: float = 0
    unavailable: float = 0
    dropped: float = 0
    truncated: float = 0
    retry_after: str | None = "0"

    def __post_init__(self):
        self._asked = Counter()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, share, seed=0):
        """A share of all requests goes wrong, a quarter of it in each way."""
        return cls(seed, *[share / 4] * 4)

    def draw(self, method, path, asked_range):
        """The fault of a request, or None."""
        with self._lock:
            request = (method, path, asked_range)
            self._asked[request] += 1
            luck = random.Random(f"{self.seed} {request} {self._asked[request]}").random()
        for fault in ("too_many", "unavailable", "dropped", "truncated"):
            luck -= getattr(self, fault)
            if luck < 0:
                return fault
        return None

    def apply(self, fault, answer):
        if fault == "dropped":
            raise Dropped
        if fault == "truncated":
            if answer.begin == answer.end:
                raise Dropped
            answer.cut = (answer.end - answer.begin) // 2
            return answer
        status = {"too_many": 429, "unavailable": 503}[fault]
        retry = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        return Answer.of(status, b'{"error":"try again"}', **retry)


def _content_range(answer):
    answer.headers["Content-Range"] = f"bytes {answer.begin}-{answer.end - 1}/{answer.size}"


def _wrong_range(answer, _):
    """206 with another Content-Range, and those bytes."""
    step = -1 if answer.begin else 1
    answer.status = 206
    answer.begin, answer.end = answer.begin + step, min(answer.end + step, answer.size)
    _content_range(answer)


def _wrong_total(answer, _):
    """Content-Range says that the file is larger than it is."""
    begin, end, size = answer.begin, answer.end, answer.size
    answer.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size + 1}"
    answer.status = 206


def _ignores_range(answer, _):
    """200 and the whole file."""
    answer.status, answer.begin, answer.end = 200, 0, answer.size
    answer.headers.pop("Content-Range", None)


def _short_body(answer, _):
    """Content-Range is right; Content-Length and body are half of it."""
    answer.end = (answer.begin + answer.end) // 2


def _long_body(answer, _):
    """Content-Range is right; Content-Length and body are 1000 bytes more."""
    answer.tail = [bytes(1000)]


def _endless(answer, _):
    """Content-Range is right; the body has no end."""
    answer.headers["Transfer-Encoding"] = "chunked"
    answer.tail = itertools.repeat(bytes(2**16))


def _corrupt(answer, _):
    """Other bytes."""
    answer.flip = True


def _gzip(answer, _):
    """Content-Encoding gzip: a quarter of a gigabyte in a quarter of a megabyte."""
    answer.headers["Content-Encoding"] = "gzip"
    answer.content = gzip_bomb()
    answer.begin, answer.end = 0, len(answer.content)


def _slow(answer, _):
    """A byte a second."""
    answer.pace = 1


def _no_length(answer, _):
    """No Content-Length: the body ends where the connection does."""
    answer.headers["Connection"] = "close"


def _other_etag(answer, request):
    """Another ETag at each request."""
    etag = f'"{request.number:064x}"'
    answer.headers |= {
        key: etag for key in answer.headers if key.lower() in ("etag", "x-linked-etag")
    }


def _html(answer, _):
    """200 and a page to log in, whatever was asked for."""
    page = b"<!doctype html><title>Welcome to our wireless network</title>"
    return Answer.of(200, page, **{"Content-Type": "text/html"})


def _deep_json(answer, _):
    """Lists in lists."""
    depth = 100_000
    return Answer.of(200, b"[" * depth + b"]" * depth, **{"Content-Type": "application/json"})


def _huge_header(answer, _):
    """A header of a megabyte."""
    answer.headers["X-Huge"] = "x" * 2**20


def _unavailable(answer, _):
    """503, each time."""
    return Answer.of(503, b"")


def _drop(answer, _):
    """No answer: the connection is closed."""
    raise Dropped


def _hang(answer, request):
    """No answer, the connection stays open."""
    request.hub.stopping.wait()
    raise Dropped


def _redirect_loop(answer, request):
    """To itself."""
    return Answer(302, {"Location": request.path})


def _to_file(answer, _):
    """To a file of whoever asks."""
    return Answer(302, {"Location": "file:///etc/passwd"})


def _to_other_host(answer, request):
    """To another host (the log says which, and what Authorization it was shown), and no further."""
    if request.host == request.hub.cdn_host:
        return None
    return Answer(302, {"Location": f"http://{request.hub.cdn_host}{request.path}"})


# Of any answer, and of those that bring (a part of) what was asked for; HEAD stays honest.
MISBEHAVIOUR = {
    "other_etag": _other_etag,
    "html": _html,
    "deep_json": _deep_json,
    "huge_header": _huge_header,
    "unavailable": _unavailable,
    "drop": _drop,
    "hang": _hang,
    "redirect_loop": _redirect_loop,
    "to_file": _to_file,
    "to_other_host": _to_other_host,
}
OF_CONTENT = {
    "wrong_range": _wrong_range,
    "wrong_total": _wrong_total,
    "ignores_range": _ignores_range,
    "short_body": _short_body,
    "long_body": _long_body,
    "endless": _endless,
    "corrupt": _corrupt,
    "gzip": _gzip,
    "slow": _slow,
    "no_length": _no_length,
}


def misbehave(kind, answer, request):
    """The answer as a kind of misbehaviour would have it, and the kind if it made a difference."""
    if kind in OF_CONTENT:
        if answer.status not in (200, 206) or request.method == "HEAD":
            return answer, None
        OF_CONTENT[kind](answer, request)
        return answer, kind
    return MISBEHAVIOUR[kind](answer, request) or answer, kind


@functools.cache
def gzip_bomb(megabytes=256):
    """Zeros in one gzip stream."""
    zeros = bytes(2**20)
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = stream.compress(zeros) + stream.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(megabytes):
        crc = zlib.crc32(zeros, crc)
    size = megabytes * 2**20
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    end = stream.flush(zlib.Z_FINISH) + crc.to_bytes(4, "little") + size.to_bytes(4, "little")
    return head + block * megabytes + end
