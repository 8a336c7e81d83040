"""Byte ranges of a file on a server or in a bucket: several requests at once, cached by content.

obstore sends the requests (`buckets`). Its answers are compared with one another here: it takes a
file that has changed since the last request, a body that is longer or shorter than the range that
the server states, and one that is compressed. It does not resume bodies of files without an ETag,
nor wait for as long as a 429 means. Its own `get_ranges` splits nothing that is large.
"""

import asyncio
import hashlib
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.buckets import Unreachable, problems, shown_path, store_of, stores, waited
from probex_jax.buckets.problems import reason
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, write_bytes

# The first request covers the header of most models; that of a ViT-Base has 25 KB.
FIRST_BYTES = 32 * 1024
# Ranges this close become one request, if the bytes between are few beside those asked for.
_GAP_BYTES, _GAP_SHARE = 64 * 1024, 1 / 64
_REQUEST_BYTES, _IN_FLIGHT = 8 * 2**20, 8
_CRC_BYTES = 4
# A range comes in pieces; a try that brought at least one of them does not count as failed.
_PIECE_BYTES, _PIECE_SHARE = 256, 1 / 128
_PLAIN = ("identity", "aws-chunked")

_Piece = tuple[int, np.ndarray]  # its offset in the file, and its bytes
_Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Remote:
    """How models on servers are read.

    Args:
      cache: a folder that keeps the ranges read, by the content of their files, so that they are
        not read again; None for no cache.
      on_bytes: called with the number of bytes received, from any thread.
      listings: the hub's file lists by commit, so that each is requested once; shared by all models
        opened with this object.
      stopped: once set, nothing more is read, and threads that wait for a server give up.
      patience_s: a server that sends nothing for so long is given up; None for as long as
        `buckets.Patience` says.
      own_hosts: whether the hub's redirects are followed to its own hosts only, for what strangers
        ask.

    Example:
      >>> Remote(cache=Path("ranges")).cache.name
      'ranges'
    """

    cache: Path | None = None
    on_bytes: Callable[[int], None] = lambda count: None
    listings: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    stopped: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    patience_s: float | None = None
    own_hosts: bool = False

    def silent(self, name: str) -> Unreachable:
        """The error of a server that was given up."""
        return Unreachable(f"{name}: no answer within {self.patience_s:g} s; try again later")


class RemoteRanges:
    """One file on a server, with the methods of `ByteRanges`; an error once the file has changed.

    Args:
      url: where it is asked for.
      remote: how it is read.
      name: what messages call it; "" for its address.
      headers: sent with each request, as `buckets.store_of` does.
      size: in bytes, as it is listed; None if it is not.
      content: what identifies its content, if known before it is read; or "".
      etag: the ETag that it must have; None for that of the first answer, "" for any.
      first: how many bytes are read at once; more than 0 if there is no size.

    Attributes:
      name, size: as `Bytes` has them.
      etag: the strong ETag of the file; "" if there is none.
    """

    def __init__(
        self,
        url: str,
        remote: Remote,
        *,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        size: int | None = None,
        content: str = "",
        etag: str | None = None,
        first: int = FIRST_BYTES,
    ):
        self.name, self._url, self._remote = name or shown_path(url), url, remote
        self._store, self._key = store_of(url, headers)
        self._listed, self._asked_etag = size, etag
        self.size = -1 if size is None else size
        self.etag = etag or ""
        self._lock = threading.Lock()
        self._cache = _cached(remote, content)
        self._held: list[_Piece] | None = []
        self._start = np.empty(0, np.uint8)
        if size is not None:
            first = min(size, first)
        if first:
            self._start = self._waited([self._part(0, self._empty(first))])[0]
        if self._cache is None and self.etag:
            self._cache = _cached(remote, f"{self.name} {self.etag} {self.size}")

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetches ranges that will be read: close ones in one request, several requests at once."""
        held = [(at, at + len(data)) for at, data in self._pieces()]
        wanted = [
            (begin, end)
            for begin, end in ranges
            if not any(first <= begin and end <= last for first, last in held)
        ]
        pieces = self._fetched(merged(wanted))
        with self._lock:
            if self._held is not None:
                self._held += pieces

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes `begin:end` as a new array of uint8."""
        if not 0 <= begin <= end <= self.size:
            raise ProbexError(f"{self.name}: no bytes {begin} to {end} in {self.size}")
        for at, data in self._pieces():
            if at <= begin and end <= at + len(data):
                return data[begin - at : end - at].copy()
        return self._fetched([(begin, end)])[0][1]

    def forget(self) -> None:
        """Drops what was fetched from memory, except the beginning of the file."""
        with self._lock:
            self._held = None if self._held is None else []

    def check_unchanged(self) -> None:
        """Nothing to do: every answer was compared with the first."""

    def close(self) -> None:
        """Drops what was fetched; reading is then an error."""
        with self._lock:
            self._held, self._start = None, np.empty(0, np.uint8)

    def _pieces(self) -> list[_Piece]:
        with self._lock:
            if self._held is None:
                raise ValueError(f"{self.name}: read after it was closed")
            return [(0, self._start), *self._held]

    def _fetched(self, ranges: _Ranges) -> list[_Piece]:
        """Ranges from what the first request brought, from the cache or else from the server."""
        start = self._pieces()[0][1]
        # No memory: an error before anything is requested.
        pieces = [(begin, self._empty(end - begin)) for begin, end in ranges]
        parts = []
        for begin, data in pieces:
            there = max(0, min(len(start), begin + len(data)) - begin)
            data[:there] = start[begin : begin + there]
            parts += [
                self._part(begin + at, data[at : at + _REQUEST_BYTES])
                for at in range(there, len(data), _REQUEST_BYTES)
            ]
        self._waited(parts)
        return pieces

    def _waited(self, parts: Sequence[Any]) -> list[np.ndarray]:
        async def together() -> list[np.ndarray]:
            free = asyncio.Semaphore(_IN_FLIGHT)

            async def one(part: Any) -> np.ndarray:
                async with free:
                    return await part()

            return await asyncio.gather(*map(one, parts))

        if not parts:
            return []
        with problems(self._url, self.name):
            return waited(together, self._remote.stopped)

    def _part(self, begin: int, data: np.ndarray) -> Callable[[], Any]:
        """What fills `data` with the bytes from `begin`, if need be by a request."""

        async def filled() -> np.ndarray:
            if (known := self._kept(begin, len(data))) is not None:
                data[:] = known
                return data
            received = await self._received(begin, data)
            self._keep(begin, received)
            return received

        return filled

    async def _received(self, begin: int, data: np.ndarray) -> np.ndarray:
        """Requests bytes until they are there; fewer where the file ends."""
        import obstore
        from obstore.exceptions import GenericError

        # After obstore's own tries, whose time is limited however much they bring.
        waits = {"": iter(stores.PATIENCE.waits_s()[:2]), "429": iter(stores.PATIENCE.too_many_s)}
        done = 0
        while True:
            answered, problem, done_before = False, None, done
            try:
                asked = obstore.get_async(
                    self._store, self._key, options={"range": (begin + done, begin + len(data))}
                )
                found = await self._soon(asked)
                answered = True
                self._check(found)
                data = data[: self.size - begin]
                least = max(_PIECE_BYTES, int(_PIECE_SHARE * len(data)))
                pieces = aiter(found.stream(least))
                while (piece := await self._soon(anext(pieces, None))) is not None:
                    if done + len(piece) > len(data):
                        raise ProbexError(f"{self.name}: the server sends more bytes than it says")
                    data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                    done += len(piece)
                    self._remote.on_bytes(len(piece))
                if done == len(data):
                    return data
            except GenericError as error:
                problem = error
            if done > done_before:
                waits[""] = iter(stores.PATIENCE.waits_s()[:2])
            status = "429" if "status code: 429" in str(problem) else ""
            wait_s = next(waits[status], None) if answered or status else None
            if wait_s is None:
                if problem and not answered:
                    raise problem
                missing = f"the server broke off, {len(data) - done} bytes are missing"
                why = reason(str(problem), "") if problem else missing
                raise Unreachable(f"{self.name}: {why}")
            await asyncio.sleep(wait_s)

    async def _soon(self, awaited: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(awaited, self._remote.patience_s)
        except TimeoutError:
            raise self._remote.silent(self.name) from None

    def _check(self, found: Any) -> None:
        """Checks that an answer is of the same file as the first, as it was listed."""
        encoding = found.attributes.get("Content-Encoding", "identity")
        if encoding not in _PLAIN:  # it could expand to any size
            raise ProbexError(
                f"{self.name}: the server sends it as {encoding[:40]!r}, expected no encoding"
            )
        size, etag = found.meta["size"], found.meta["e_tag"] or ""
        etag = "" if etag.startswith("W/") else etag  # a weak one allows other bytes
        with self._lock:
            if self._asked_etag is None:
                self._asked_etag = self.etag = etag
            if self.size < 0:
                self.size = size
        if size != self._listed and self._listed is not None:
            raise ProbexError(f"{self.name}: {size} bytes, the list of files says {self._listed}")
        if size != self.size or (self._asked_etag and etag != self._asked_etag):
            raise ProbexError(
                f"{self.name}: changed on the server while it was read ({size} bytes, ETag "
                f"{etag[:80]!r}; before {self.size} bytes, {self.etag[:80]!r}); try again"
            )

    def _empty(self, size: int) -> np.ndarray:
        try:
            return np.empty(size, np.uint8)
        except MemoryError as error:
            raise ProbexError(f"{self.name}: no memory for {size} bytes of it") from error

    def _kept(self, begin: int, size: int) -> np.ndarray | None:
        """A range from the cache; None if it is not there, or damaged."""
        if self._cache is None or self.size < 0:
            return None
        try:
            with (self._cache / f"{begin}-{begin + size}").open("rb") as file:
                data = file.read(size + _CRC_BYTES + 1)
        except OSError:
            return None
        found = np.frombuffer(data, np.uint8)[:-_CRC_BYTES]
        return found if len(found) == size and data[-_CRC_BYTES:] == _sum(found) else None

    def _keep(self, begin: int, data: np.ndarray) -> None:
        if self._cache is not None and len(data):
            write_cached(self._cache / f"{begin}-{begin + len(data)}", data.tobytes() + _sum(data))


def merged(ranges: _Ranges) -> list[tuple[int, int]]:
    """Sorted ranges, those that lie close together merged.

    Example:
      >>> merged([(900_000, 990_000), (0, 90_000), (90_000, 180_000), (181_000, 270_000)])
      [(0, 270000), (900000, 990000)]
    """
    gap = min(_GAP_BYTES, _GAP_SHARE * sum(end - begin for begin, end in ranges))
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif begin < end:
            found.append((begin, end))
    return found


def write_cached(path: Path, data: bytes) -> None:
    """Writes a cache file whole or not at all, even if others write it at the same time."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)


def _cached(remote: Remote, content: str) -> Path | None:
    """The folder for the ranges of a file's content."""
    if remote.cache is None or not content:
        return None
    return remote.cache / hashlib.sha256(content.encode()).hexdigest()


def _sum(data: np.ndarray) -> bytes:
    return zlib.crc32(data.data).to_bytes(_CRC_BYTES, "little")


def read_whole(file: RemoteRanges, limit: int) -> bytes:
    """Reads a small file whole; more than `limit` bytes are a ProbexError."""
    if file.size > limit:
        raise ProbexError(f"{file.name}: {file.size} bytes, the limit is {limit}")
    return file.read(0, file.size).tobytes()
