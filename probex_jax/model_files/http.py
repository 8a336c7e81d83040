"""Requests for bytes of files on servers: every answer is checked, and what fails is tried again.

The connection is that of huggingface_hub: its proxies and certificates, its token for the hub.
"""

import json
import random
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import json_object

# Tries without progress before giving up: with the waits between them about a minute, unless the
# server asks for longer ones.
ATTEMPTS = 12
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_LONGEST_RETRY_AFTER_S = 600.0
# What counts as progress, or a quarter of the rest: a server that sends a byte a try is not
# followed for ever.
_PROGRESS_BYTES = 64 * 1024
_TIMEOUT_S = 30.0
_SLOWEST_BYTES_A_SECOND = 16 * 1024
_TRIES_OF_A_SLOW_ONE = 4
_TRIES_AT_ONCE = 2  # as a server may ask for with `Retry-After: 0`
_REDIRECTS = 10
_PASSING = {408, 425, 429}  # and whatever a server says of itself, 5xx

_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


@dataclass(frozen=True)
class Answer:
    """What a server said of a file when it sent bytes of it.

    Args:
      size: bytes of the whole file.
      etag: what changes when the file does, or "" where the server says nothing of the kind.
      content: hash of the whole file, where the hub says it: SHA-256, or Git's SHA-1; or "".
      commit: of the hub's repository, or "".
    """

    size: int
    etag: str = ""
    content: str = ""
    commit: str = ""


class Passing(Exception):
    """Something that may be gone at the next try.

    Args:
      problem: what it was.
      wait_s: how long the server asks to wait, or None.
      tries: how many tries it counts for: one that took long counts for several.
    """

    def __init__(self, problem: str, wait_s: float | None = None, tries: int = 1):
        super().__init__(problem)
        self.wait_s, self.tries = wait_s, tries


class Url:
    """A file on a server.

    Args:
      url: where it is.
      name: for messages.
      headers: to send along, to this address only: where the server redirects to another, they
        are left out.
      commit: of the hub's repository that it must be of, where it is on the hub.
      stopped: set by whoever wants nothing any more.
    """

    def __init__(
        self,
        url: str,
        name: str,
        headers: Mapping[str, str] | None = None,
        commit: str = "",
        stopped: threading.Event | None = None,
    ):
        self.name, self._commit = name, commit
        self._stopped = stopped or threading.Event()
        self._url, self._headers = url, dict(headers or {})
        self._direct: str | None = None  # where the last redirect led
        self._lock = threading.Lock()
        self._answer: Answer | None = None

    def stream(self, begin: int, end: int, *, whole: bool = True) -> Iterator[bytes]:
        """The bytes `begin:end` of the file, in pieces as they come; goes on where a try broke off.

        Args:
          begin, end: 0 <= begin < end.
          whole: whether fewer bytes are an error; otherwise the file may end before.

        Raises:
          ProbexError: if the server does not send them, sends others, or the file has changed.
        """
        failures = 0
        while begin < end:
            progress = begin + min(_PROGRESS_BYTES, (end - begin) // 4 + 1)
            try:
                for piece in self._request(begin, end, whole):
                    begin += len(piece)
                    yield piece
                    if self._stopped.is_set():
                        raise ProbexError(f"{self.name}: interrupted")
                if not whole and begin >= self.answer.size:
                    return
                if begin < end:
                    raise Passing(f"{end - begin} bytes are missing of what was asked for")
            except Passing as problem:
                self._direct = None  # it may have been good for some time only
                failures = problem.tries + (0 if begin >= progress else failures)
                wait(failures, problem, self.name, self._stopped)

    @property
    def answer(self) -> Answer:
        """What the server said of the file at the first request."""
        if self._answer is None:
            raise ValueError(f"{self.name}: nothing was read yet")
        return self._answer

    def _request(self, begin: int, end: int, whole: bool) -> Iterator[bytes]:
        """One request; raises Passing where another may do better."""
        direct = self._direct
        headers = {
            **(self._headers if direct is None else _for_another(self._headers, self._url, direct)),
            "Range": f"bytes={begin}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        with opened(direct or self._url, headers, self.name) as response:
            status = response.status_code
            if direct is not None and status >= 400 and not _passes(status):
                raise Passing("the address that the server redirected to has expired", 0)
            length = self._check(response, begin, end, whole)
            if response.history:
                self._direct = str(response.url)
            yield from _body(response, length, self.name)

    def _check(self, response: Any, begin: int, end: int, whole: bool) -> int:
        """Whether an answer is the one that was asked for; how many bytes it should have."""
        raise_for_status(response, self.name)
        check_encoding(response, self.name)
        answer, first, last = self._said(response, begin, end)
        if answer.commit and self._commit and answer.commit != self._commit:
            raise ProbexError(
                f"{self.name}: the server sends it as of another commit, {answer.commit[:64]!r}"
            )
        with self._lock:
            known = self._answer = self._answer or answer
        if (answer.size, answer.etag) != (known.size, known.etag):
            raise ProbexError(
                f"{self.name}: changed on the server while it was read "
                f"({answer.size} bytes, ETag {answer.etag[:80]!r}; before {known.size} bytes, "
                f"{known.etag[:80]!r}); try again"
            )
        expected = min(end, answer.size)
        if (first, last) != (begin, expected) or (whole and expected < end):
            raise ProbexError(
                f"{self.name}: asked for bytes {begin} to {end - 1}, the server answers with "
                f"{first} to {last - 1} of {answer.size}"
            )
        return last - first

    def _said(self, response: Any, begin: int, end: int) -> tuple[Answer, int, int]:
        headers = response.headers
        linked = next(
            (h for r in (*response.history, response) if (h := r.headers.get("x-linked-etag"))), ""
        )
        commit = next(
            (h for r in (*response.history, response) if (h := r.headers.get("x-repo-commit"))), ""
        )
        # A weak one does not promise the same bytes.
        etag = headers.get("etag", "")
        etag = "" if etag.startswith("W/") else etag.strip('"')
        # Other servers than the hub mean something else by their ETags.
        content = (linked or (etag if commit else "")).removeprefix("W/").strip('"')
        if response.status_code == 200:
            # A server may send a small file whole.
            length = headers.get("content-length", "")
            if begin or not _LENGTH.fullmatch(length) or int(length) > end:
                raise ProbexError(
                    f"{self.name}: the server sends whole files only, no byte ranges; download the "
                    "file and open it from the disk"
                )
            return Answer(int(length), etag, content, commit), 0, int(length)
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
        if response.status_code != 206 or not found:
            raise ProbexError(
                f"{self.name}: expected a range of bytes, the server answers with HTTP "
                f"{response.status_code}, Content-Range "
                f"{headers.get('content-range', 'missing')[:80]!r}"
            )
        first, last, size = map(int, found.groups())
        return Answer(size, etag, content, commit), first, last + 1


def wait(
    failures: int, problem: Passing, name: str, stopped: threading.Event | None = None
) -> None:
    """Waits before the next try, longer each time; a ProbexError where there were too many."""
    if failures >= ATTEMPTS:
        raise ProbexError(f"{name}: {problem}; tried many times, try again later") from problem
    wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (failures - 1)) * random.uniform(0.5, 1)
    if problem.wait_s is not None:
        # What the server asks for, but it may not be asked again and again without a pause.
        least_s = wait_s if failures > _TRIES_AT_ONCE else 0.0
        wait_s = max(least_s, min(problem.wait_s, _LONGEST_RETRY_AFTER_S))
    if _pause(wait_s, stopped):
        raise ProbexError(f"{name}: interrupted")


def _pause(wait_s: float, stopped: threading.Event | None) -> bool:
    """Waits, and says whether that was cut short."""
    return (stopped or threading.Event()).wait(wait_s)


def json_body(
    url: str,
    headers: Mapping[str, str],
    name: str,
    limit: int,
    stopped: threading.Event | None = None,
    **limits: int,
) -> dict[str, Any]:
    """The JSON object that an answer is; one of more than `limit` bytes is a ProbexError."""
    headers = {**headers, "Accept-Encoding": "identity"}
    failures = 0
    while True:
        try:
            with opened(url, headers, name) as response:
                raise_for_status(response, name)
                check_encoding(response, name)
                if response.status_code != 200:
                    raise ProbexError(
                        f"{name}: the server answers with HTTP {response.status_code}"
                    )
                return _json(_small(response, name, limit, stopped), name, limits)
        except Passing as problem:
            failures += problem.tries
            wait(failures, problem, name, stopped)


def _json(body: bytes, name: str, limits: Mapping[str, int]) -> dict[str, Any]:
    try:
        return json_object(body, f"{name}: the hub's answer", **limits)
    except ProbexError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and (
            cause.pos >= len(cause.doc.rstrip()) or cause.msg.startswith("Unterminated string")
        ):
            raise Passing("the answer breaks off", tries=2) from error
        raise


@contextmanager
def opened(url: str, headers: Mapping[str, str], name: str) -> Iterator[Any]:
    """A request whose body is still to be read; raises Passing where there is no connection."""
    session, errors = _client(name)
    history: list[Any] = []
    try:
        request = session.build_request("GET", url, headers=dict(headers), timeout=_TIMEOUT_S)
        while request is not None:
            first, now = (history[0] if history else request).url.scheme, request.url.scheme
            if now != "https" and (first, now) != ("http", "http"):
                raise ProbexError(f"{name}: the server redirects from {first} to {now[:20]}")
            if len(history) > _REDIRECTS:
                raise ProbexError(f"{name}: the server redirects more than {_REDIRECTS} times")
            # Not by the session, which would read the body of each redirect, of any length. A short
            # one is read, so that its connection is of use again.
            with closing(session.send(request, stream=True, follow_redirects=False)) as response:
                request = response.next_request
                if request is None:
                    response.history = history
                    yield response
                elif len(response.headers.get("content-length", "many")) < 4:
                    list(islice(response.iter_raw(), 3))
            history.append(response)
    except errors as error:
        if type(error).__name__ == "InvalidURL":
            raise ProbexError(f"{name}: {_reason(error)}") from error
        tries = {"ConnectError": 2}.get(type(error).__name__, 1)
        if "Timeout" in type(error).__name__:
            tries = _TRIES_OF_A_SLOW_ONE
        raise Passing(_reason(error), tries=tries) from error
    except OSError as error:  # offline mode
        raise ProbexError(f"{name}: {_reason(error)}") from error


def raise_for_status(response: Any, name: str) -> None:
    """A ProbexError where the server refuses, Passing where it may not do so again."""
    status, phrase = response.status_code, response.reason_phrase[:80]
    if _passes(status):
        raise Passing(f"HTTP {status} {phrase}", _retry_after(response))
    code = response.headers.get("x-error-code", "")[:40]
    said = f"(HTTP {status}, {code})" if code else f"(HTTP {status})"
    if code == "RevisionNotFound":
        raise NotFound(f"{name}: no such revision on the hub {said}")
    if code == "RepoNotFound":
        raise ProbexError(
            f"{name}: no such repository on the hub, or a private one {said}; for those log in "
            "with `hf auth login` or set HF_TOKEN"
        )
    if status in (401, 403):
        raise Refused(
            f"{name}: not allowed, or nothing there {said}; log in with `hf auth login` or set "
            "HF_TOKEN, and accept the model's terms where it has some"
        )
    if status in (404, 410):
        raise NotFound(f"{name}: nothing there on the server {said}")
    if status == 416:
        raise ProbexError(f"{name}: has no such bytes (HTTP 416); is it empty?")
    if status >= 400:
        raise ProbexError(f"{name}: the server refuses (HTTP {status} {phrase})")


def check_encoding(response: Any, name: str) -> None:
    """A ProbexError where a body is compressed: it could be of any size."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ProbexError(f"{name}: the server sends it as {encoding[:40]!r}, not as it is")


class NotFound(ProbexError):
    """The server has no such file."""


class Refused(ProbexError):
    """The server does not say whether it has such a file."""


def _body(response: Any, length: int, name: str) -> Iterator[bytes]:
    """The body, no more than announced, and not slower than for ever."""
    deadline = time.monotonic() + _TIMEOUT_S + length / _SLOWEST_BYTES_A_SECOND
    for piece in response.iter_raw():
        if len(piece) > length:
            raise ProbexError(f"{name}: the server sends more bytes than were asked for")
        length -= len(piece)
        yield piece
        if time.monotonic() > deadline and length:
            raise Passing("the server sends too slowly", tries=_TRIES_OF_A_SLOW_ONE)
    if length:
        raise Passing(f"the server broke off, {length} bytes are missing")


def _small(response: Any, name: str, limit: int, stopped: threading.Event | None) -> bytes:
    """All of a body, whether its length is announced or not."""
    length = response.headers.get("content-length", "")
    announced = _LENGTH.fullmatch(length) and int(length) <= limit
    pieces = []
    for piece in (
        _body(response, int(length), name) if announced else _at_most(response, limit, name)
    ):
        if stopped is not None and stopped.is_set():
            raise ProbexError(f"{name}: interrupted")
        pieces.append(piece)
    return b"".join(pieces)


def _at_most(response: Any, limit: int, name: str) -> Iterator[bytes]:
    """A body of unknown length, no more than a limit, and not slower than for ever."""
    deadline = time.monotonic() + _TIMEOUT_S + limit / _SLOWEST_BYTES_A_SECOND
    for piece in response.iter_raw():
        limit -= len(piece)
        if limit < 0:
            raise ProbexError(f"{name}: the answer is too long")
        yield piece
        if time.monotonic() > deadline:
            raise Passing("the server sends too slowly", tries=_TRIES_OF_A_SLOW_ONE)


def _passes(status: int) -> bool:
    return status in _PASSING or status >= 500


def _retry_after(response: Any) -> float | None:
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _for_another(headers: Mapping[str, str], url: str, direct: str) -> dict[str, str]:
    """Headers for where a server redirected to: another server is not told the token."""
    same = urlsplit(url)[:2] == urlsplit(direct)[:2]
    return {k: text for k, text in headers.items() if same or k.lower() != "authorization"}


def require_client(name: str) -> None:
    """A ProbexError where the hub's client is not installed."""
    _client(name)


def _client(name: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """The session of the hub's client, and what it raises when there is no answer."""
    try:
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import get_session
    except ImportError:
        raise ProbexError(
            f"{name}: reading from a server needs huggingface_hub: pip install probex_jax[hub]"
        ) from None
    # Of the HTTP library that this version of the client is built on.
    error = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    library = sys.modules[error.__module__.partition(".")[0]]
    return get_session(), (error, library.InvalidURL)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)
