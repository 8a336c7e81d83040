"""Byte ranges of a file on a server: several requests at once, and a cache by content.

fsspec merges the ranges; its own HTTP files neither compare ETags between requests nor keep ranges
by the file's hash.
"""

import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors
from probex_jax.model_files.http import Answer, RemoteFile

# The first request covers the header of most models; that of a ViT-Base has 25 KB.
FIRST_BYTES = 128 * 1024
# Ranges this close become one request: a round trip costs more than the bytes between.
_GAP_BYTES = 64 * 1024
_REQUEST_BYTES = 8 * 2**20
_IN_FLIGHT = 8
_CRC_BYTES = 4
_CACHED = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})")

_Piece = tuple[int, np.ndarray]  # its offset in the file, and its bytes


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

    Example:
      >>> Remote(cache=Path("ranges")).cache.name
      'ranges'
    """

    cache: Path | None = None
    on_bytes: Callable[[int], None] = lambda count: None
    listings: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    stopped: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)


class HttpRanges:
    """One file on a server, with the methods of `ByteRanges`; an error once the file has changed.

    Args:
      url: the file.
      remote: how it is read.
      content: what identifies the file's content, if known before it is read; or "".
      size: of the file in bytes, if known.
    """

    def __init__(self, url: RemoteFile, remote: Remote, content: str = "", size: int | None = None):
        self.name = url.name
        self._url, self._remote = url, remote
        self._lock = threading.Lock()
        self._held: list[_Piece] | None = []
        self._cache = _RangeCache(remote.cache, content) if remote.cache and content else None
        if size is None and self._cache is not None:
            size = self._cache.size()
        self._content, self.size = content, -1 if size is None else size
        beginning = (0, FIRST_BYTES if size is None else min(size, FIRST_BYTES))
        self._hold(self._cached([beginning]))
        if _gaps(self._pieces(), [beginning]):
            self._hold([self._fetched(*beginning, whole=False)])

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetches ranges that will be read: close ones in one request, several requests at once."""
        self._hold(self._missing(self._pieces(), list(ranges)))

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes `begin:end` as a new array of uint8."""
        if not 0 <= begin <= end <= self.size:
            raise ProbexError(f"{self.name}: no bytes {begin} to {end} in {self.size}")
        # A copy: another thread may forget them.
        pieces = self._pieces()
        pieces += self._missing(pieces, [(begin, end)])
        data = self._empty(end - begin)
        for at, piece in pieces:
            first, last = max(at, begin), min(at + len(piece), end)
            if first < last:
                data[first - begin : last - begin] = piece[first - at : last - at]
        return data

    def forget(self) -> None:
        """Drops what was fetched from memory, except the beginning of the file."""
        with self._lock:
            self._held = self._held and [(at, piece) for at, piece in self._held if at == 0]

    def check_unchanged(self) -> None:
        """Nothing to do: every answer was compared with the first."""

    def close(self) -> None:
        """Drops what was fetched; reading is then an error."""
        with self._lock:
            self._held = None

    def _pieces(self) -> list[_Piece]:
        with self._lock:
            if self._held is None:
                raise ValueError(f"{self.name}: read after it was closed")
            return [*self._held]

    def _hold(self, pieces: Sequence[_Piece]) -> None:
        with self._lock:
            if self._held is not None:
                self._held += pieces

    def _missing(self, pieces: Sequence[_Piece], ranges: Sequence[tuple[int, int]]) -> list[_Piece]:
        """The parts of some ranges that are in no piece, from the cache or else the server."""
        cached = self._cached(_gaps(pieces, ranges))
        missing = merged(_gaps([*pieces, *cached], ranges))
        self._empty(sum(end - begin for begin, end in missing))  # no memory: fail before requesting
        requests = [
            (begin, min(begin + _REQUEST_BYTES, end))
            for first, end in missing
            for begin in range(first, end, _REQUEST_BYTES)
        ]
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            return cached + list(pool.map(lambda request: self._fetched(*request), requests))

    def _fetched(self, begin: int, end: int, whole: bool = True) -> _Piece:
        """Requests one range and caches it."""
        data = self._empty(end - begin)
        done = 0
        for piece in self._url.stream(begin, end, whole=whole):
            data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
            self._remote.on_bytes(len(piece))
        self._check(self._url.answer)
        data = data[:done]
        if self._cache is not None:
            self._cache.put(begin, data, self.size)
        return begin, data

    def _empty(self, size: int) -> np.ndarray:
        try:
            return np.empty(size, np.uint8)
        except MemoryError as error:
            raise ProbexError(f"{self.name}: no memory for {size} bytes of it") from error

    def _check(self, answer: Answer) -> None:
        """Checks that the server and the hub's list agree about the file."""
        if self.size < 0:
            self.size = answer.size
        if answer.size != self.size:
            raise ProbexError(f"{self.name}: {answer.size} bytes, the hub's list says {self.size}")
        known = self._content
        if known and len(answer.content) == len(known) and answer.content != known:
            raise ProbexError(
                f"{self.name}: its hash is {answer.content}, the hub's list says {known}"
            )
        if self._cache is None and self._remote.cache is not None and answer.etag:
            content = f"{self.name} {answer.etag} {answer.size}"
            self._cache = _RangeCache(self._remote.cache, content)

    def _cached(self, ranges: Iterable[tuple[int, int]]) -> list[_Piece]:
        """The parts of some ranges that are cached."""
        if self._cache is None:
            return []
        return [piece for begin, end in ranges for piece in self._cache.get(begin, end)]


def _gaps(pieces: Iterable[_Piece], ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of some ranges that are in no piece."""
    there = sorted((at, at + len(piece)) for at, piece in pieces)
    gaps = []
    for begin, end in ranges:
        for first, last in there:
            if last > begin and first < end:
                if begin < first:
                    gaps.append((begin, first))
                begin = last
        if begin < end:
            gaps.append((begin, end))
    return gaps


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges, those that lie close together merged.

    Example:
      >>> merged([(900_000, 900_010), (100, 200), (200, 300), (5_000, 5_001)])
      [(100, 5001), (900000, 900010)]
    """
    from fsspec.utils import merge_offset_ranges

    begins, ends = [begin for begin, _ in ranges], [end for _, end in ranges]
    _, begins, ends = merge_offset_ranges([""] * len(ranges), begins, ends, max_gap=_GAP_BYTES)
    return list(zip(begins, ends, strict=True))


def write_cached(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a cache file whole or not at all, even if others write it at the same time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(path)


class _RangeCache:
    """Cached ranges of one file: a folder of files `BEGIN-END-SIZE` that end with a checksum."""

    def __init__(self, cache: Path, content: str):
        self._folder = cache / hashlib.sha256(content.encode()).hexdigest()

    def put(self, begin: int, data: np.ndarray, size: int) -> None:
        if not len(data):
            return
        write_cached(self._folder / f"{begin}-{begin + len(data)}-{size}", data.data, _sum(data))

    def size(self) -> int | None:
        """The size of the file, if any of it is cached."""
        names = (_CACHED.fullmatch(path.name) for path in self._files())
        return next((int(name[3]) for name in names if name), None)

    def get(self, begin: int, end: int) -> list[_Piece]:
        """The cached pieces of a range; damaged cache files are deleted."""
        found = []
        for path in self._files():
            name = _CACHED.fullmatch(path.name)
            if not name:
                continue
            first, last, _ = map(int, name.groups())
            if not (first < end and begin < last):
                continue
            data = _checked(path, last - first)
            if data is not None:
                found.append((first, data))
        return found

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.iterdir())
        except OSError:
            return []


def _checked(path: Path, size: int) -> np.ndarray | None:
    """The content of a cache file; None if it is damaged, which deletes it."""
    with disk_errors(path):
        try:
            if path.stat().st_size == size + _CRC_BYTES:
                content = path.read_bytes()
                data = np.frombuffer(content, np.uint8)[:-_CRC_BYTES]
                if len(data) == size and _sum(data) == content[-_CRC_BYTES:]:
                    return data
            path.unlink()
        except FileNotFoundError:  # another thread deleted it
            pass
    return None


def _sum(data: np.ndarray) -> bytes:
    return zlib.crc32(data.data).to_bytes(_CRC_BYTES, "little")
