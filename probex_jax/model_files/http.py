"""Requests for byte ranges of files on servers, with retries; every answer is checked.

The session is huggingface_hub's, with its proxies, certificates and token. Its own readers, like
fsspec's, trust the server: they do not check that an answer is the range that was asked for and of
the same file as before, nor limit the size and time of bodies and redirects.
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

# Tries without progress before giving up: about a minute with the waits between them, unless the
# server asks for longer ones.
ATTEMPTS = 12
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_LONGEST_RETRY_AFTER_S = 600.0
# What counts as progress, or a quarter of the rest: a byte per try would go on for ever.
_PROGRESS_BYTES = 64 * 1024
_TIMEOUT_S = 30.0
_SLOWEST_BYTES_A_SECOND = 16 * 1024
_TRIES_OF_A_SLOW_ONE = 4
_TRIES_AT_ONCE = 2  # as a server may ask for with `Retry-After: 0`
_MAX_REDIRECTS = 10
_TRANSIENT = {408, 425, 429}  # and every 5xx

_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


@dataclass(frozen=True)
class Answer:
    """What a server states about a file when it sends bytes of it.

    Args:
      size: of the whole file, in bytes.
      etag: the strong ETag; "" if there is none.
      content: the whole file's hash as the hub states it, SHA-256 or Git's SHA-1; or "".
      commit: of the hub's repository, or "".
    """

    size: int
    etag: str = ""
    content: str = ""
    commit: str = ""


class TransientError(Exception):
    """A failure that the next try may not meet.

    Args:
      problem: what failed.
      wait_s: how long the server asks to wait, or None.
      tries: how many tries it counts as; a slow one counts as several.
    """

    def __init__(self, problem: str, wait_s: float | None = None, tries: int = 1):
        super().__init__(problem)
        self.wait_s, self.tries = wait_s, tries


class RemoteFile:
    """A file on a server.

    Args:
      url: its address.
      name: what messages call it.
      headers: sent with each request; the token is not sent to another server.
      commit: the commit of the hub's repository that the file must be of; "" for any.
      stopped: once set, reading ends with an error.
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
        """The bytes `begin:end` of the file, in pieces as they arrive; a retry resumes.

        Args:
          begin, end: 0 <= begin < end.
          whole: whether it is an error if the file ends before `end`.

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
                    raise TransientError(f"{end - begin} of the bytes asked for are missing")
            except TransientError as problem:
                self._direct = None  # it may have expired
                failures = problem.tries + (0 if begin >= progress else failures)
                _wait(failures, problem, self.name, self._stopped)

    @property
    def answer(self) -> Answer:
        """What the server stated about the file in its first answer."""
        if self._answer is None:
            raise ValueError(f"{self.name}: nothing was read yet")
        return self._answer

    def _request(self, begin: int, end: int, whole: bool) -> Iterator[bytes]:
        """One request; a TransientError if another may succeed."""
        direct = self._direct
        # Another server than the one that was named is not sent the token.
        is_same = direct is None or urlsplit(self._url)[:2] == urlsplit(direct)[:2]
        headers = {
            **{k: v for k, v in self._headers.items() if is_same or k.lower() != "authorization"},
            "Range": f"bytes={begin}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        with _opened(direct or self._url, headers, self.name) as response:
            status = response.status_code
            if direct is not None and status >= 400 and not _is_transient(status):
                raise TransientError("the address that the server redirected to has expired", 0)
            length = self._check(response, begin, end, whole)
            if response.history:
                self._direct = str(response.url)
            yield from _body(response, length, self.name)

    def _check(self, response: Any, begin: int, end: int, whole: bool) -> int:
        """Checks that an answer is the range asked for; returns its number of bytes."""
        _check_response(response, self.name)
        answer, first, last = self._stated(response, begin, end)
        if answer.commit and self._commit and answer.commit != self._commit:
            raise ProbexError(
                f"{self.name}: the server sends it from another commit, {answer.commit[:64]!r}"
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

    def _stated(self, response: Any, begin: int, end: int) -> tuple[Answer, int, int]:
        """What a response states about the file, and the range that it holds."""
        headers = response.headers

        def of_the_hub(name: str) -> str:  # the hub states it before it redirects
            found = (r.headers.get(name) for r in (*response.history, response))
            return next(filter(None, found), "")

        linked, commit = of_the_hub("x-linked-etag"), of_the_hub("x-repo-commit")
        etag = headers.get("etag", "")
        etag = "" if etag.startswith("W/") else etag.strip('"')  # a weak one allows other bytes
        # On other servers than the hub, an ETag is no hash of the content.
        content = (linked or (etag if commit else "")).removeprefix("W/").strip('"')
        if response.status_code == 200:
            # Some servers send a small file whole.
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


def _wait(failures: int, problem: TransientError, name: str, stopped: threading.Event) -> None:
    """Waits before the next try, longer each time; a ProbexError after too many."""
    if failures >= ATTEMPTS:
        raise ProbexError(f"{name}: {problem}; tried many times, try again later") from problem
    wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (failures - 1)) * random.uniform(0.5, 1)
    if problem.wait_s is not None:
        # As the server asks, but not again and again without a pause.
        least_s = wait_s if failures > _TRIES_AT_ONCE else 0.0
        wait_s = max(least_s, min(problem.wait_s, _LONGEST_RETRY_AFTER_S))
    if _pause(wait_s, stopped):
        raise ProbexError(f"{name}: interrupted")


def _pause(wait_s: float, stopped: threading.Event) -> bool:
    """Waits; returns whether `stopped` cut the wait short."""
    return stopped.wait(wait_s)


def json_body(
    url: str,
    headers: Mapping[str, str],
    name: str,
    limit: int,
    stopped: threading.Event | None = None,
    **limits: int,
) -> dict[str, Any]:
    """Requests a JSON object; an answer of more than `limit` bytes is a ProbexError."""
    stopped = stopped or threading.Event()
    headers = {**headers, "Accept-Encoding": "identity"}
    failures = 0
    while True:
        try:
            with _opened(url, headers, name) as response:
                _check_response(response, name)
                if response.status_code != 200:
                    raise ProbexError(f"{name}: the server answers HTTP {response.status_code}")
                return _json(_small_body(response, name, limit, stopped), name, limits)
        except TransientError as problem:
            failures += problem.tries
            _wait(failures, problem, name, stopped)


def _json(body: bytes, name: str, limits: Mapping[str, int]) -> dict[str, Any]:
    try:
        return json_object(body, f"{name}: the hub's answer", **limits)
    except ProbexError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and (
            cause.pos >= len(cause.doc.rstrip()) or cause.msg.startswith("Unterminated string")
        ):
            raise TransientError("the answer breaks off", tries=2) from error
        raise


@contextmanager
def _opened(url: str, headers: Mapping[str, str], name: str) -> Iterator[Any]:
    """A response with its body still unread; a TransientError if there is no connection."""
    session, errors = http_session(name)
    history: list[Any] = []
    try:
        request = session.build_request("GET", url, headers=dict(headers), timeout=_TIMEOUT_S)
        while request is not None:
            first, now = (history[0] if history else request).url.scheme, request.url.scheme
            if now != "https" and (first, now) != ("http", "http"):
                raise ProbexError(f"{name}: the server redirects from {first} to {now[:20]}")
            if len(history) > _MAX_REDIRECTS:
                raise ProbexError(f"{name}: the server redirects more than {_MAX_REDIRECTS} times")
            # The session would read the body of each redirect, however long. A short one is read,
            # so that its connection can be used again.
            with closing(session.send(request, stream=True, follow_redirects=False)) as response:
                request = response.next_request
                if request is None:
                    response.history = history
                    yield response
                elif len(response.headers.get("content-length", "many")) < 4:
                    list(islice(response.iter_raw(), 3))
            history.append(response)
    except errors + (OSError,) as error:  # noqa: RUF005 - an OSError in offline mode
        kind = type(error).__name__
        if kind == "InvalidURL" or not isinstance(error, errors):
            raise ProbexError(f"{name}: {_reason(error)}") from error
        tries = _TRIES_OF_A_SLOW_ONE if "Timeout" in kind else 2 if kind == "ConnectError" else 1
        raise TransientError(_reason(error), tries=tries) from error


def _check_response(response: Any, name: str) -> None:
    """A ProbexError if the server refuses or compresses, a TransientError if it is overloaded."""
    status, phrase = response.status_code, response.reason_phrase[:80]
    if _is_transient(status):
        raise TransientError(f"HTTP {status} {phrase}", _retry_after(response))
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
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ProbexError(  # it could expand to any size
            f"{name}: the server sends it as {encoding[:40]!r}, expected no encoding"
        )


class NotFound(ProbexError):
    """The server has no such file."""


class Refused(ProbexError):
    """The server does not tell whether it has such a file."""


def _body(response: Any, size: int, name: str, *, exact: bool = True) -> Iterator[bytes]:
    """The body of a response: `size` bytes, or at most that many; not slower than the limit."""
    deadline, missing = time.monotonic() + _TIMEOUT_S + size / _SLOWEST_BYTES_A_SECOND, size
    for piece in response.iter_raw():
        missing -= len(piece)
        if missing < 0:
            raise ProbexError(f"{name}: the server sends more bytes than expected, {size}")
        yield piece
        if time.monotonic() > deadline and missing:
            raise TransientError("the server sends too slowly", tries=_TRIES_OF_A_SLOW_ONE)
    if exact and missing:
        raise TransientError(f"the server broke off, {missing} bytes are missing")


def _small_body(response: Any, name: str, limit: int, stopped: threading.Event) -> bytes:
    """A whole body of at most `limit` bytes, whether its length is announced or not."""
    length = response.headers.get("content-length", "")
    exact = bool(_LENGTH.fullmatch(length)) and int(length) <= limit
    pieces = []
    for piece in _body(response, int(length) if exact else limit, name, exact=exact):
        if stopped.is_set():
            raise ProbexError(f"{name}: interrupted")
        pieces.append(piece)
    return b"".join(pieces)


def _is_transient(status: int) -> bool:
    return status in _TRANSIENT or status >= 500


def _retry_after(response: Any) -> float | None:
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def http_session(name: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """huggingface_hub's session, and what it raises where there is no answer.

    Raises:
      ProbexError: if huggingface_hub is not installed.
    """
    try:
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import get_session
    except ImportError:
        raise ProbexError(
            f"{name}: reading from a server needs huggingface_hub: pip install probex_jax[hub]"
        ) from None
    # From the HTTP library that this version of huggingface_hub uses.
    error = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    library = sys.modules[error.__module__.partition(".")[0]]
    return get_session(), (error, library.InvalidURL)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)
