"""Byte ranges of a file on a server, several requests at once, and a cache of them by content."""

import hashlib
import os
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
from probex_jax.model_files.http import Answer, Url

# The first request brings the header of most models; that of a ViT-Base is 25 KB long.
FIRST_BYTES = 128 * 1024
# Ranges this close are one request: a round trip costs more than the bytes between.
_GAP_BYTES = 64 * 1024
_REQUEST_BYTES = 8 * 2**20
_IN_FLIGHT = 8
_CRC_BYTES = 4


@dataclass(frozen=True)
class Remote:
    """How models on servers are read.

    Args:
      cache: a folder in which the ranges that were read are kept, by the content of their files,
        so that they are not read again; None for none.
      on_bytes: called with the number of bytes that came from a server, in any thread.
      listings: what the hub said of commits, so that it is asked once; shared by all that is opened
        with this object.

    Example:
      >>> Remote(cache=Path("ranges")).cache.name
      'ranges'
    """

    cache: Path | None = None
    on_bytes: Callable[[int], None] = lambda count: None
    listings: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


class HttpRanges:
    """One file on a server. The same methods as `ByteRanges`, for as long as it is unchanged.

    Args:
      url: the file.
      remote: how it is read.
      content: what tells its content from any other's, where that is known before it is read.
      size: of the file in bytes, where that is known.
    """

    def __init__(self, url: Url, remote: Remote, content: str = "", size: int | None = None):
        self.name = url.name
        self._url, self._remote = url, remote
        self._lock = threading.Lock()
        self._held: list[tuple[int, np.ndarray]] = []
        self._content, self.size = content, -1 if size is None else size
        self._cache = _Kept(remote.cache, content) if remote.cache and content else None
        beginning = (0, FIRST_BYTES if size is None else min(size, FIRST_BYTES))
        self._from_cache([beginning])
        if self._gaps([beginning]):
            self._fetched(*beginning, whole=False)

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Reads ranges that `read` will be asked for, close ones in one request, many at once."""
        wanted = list(ranges)
        self._from_cache(self._gaps(wanted))
        requests = [
            (begin, min(begin + _REQUEST_BYTES, end))
            for first, end in merged(self._gaps(wanted))
            for begin in range(first, end, _REQUEST_BYTES)
        ]
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            list(pool.map(lambda request: self._fetched(*request), requests))

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes `begin:end` as a new array of uint8."""
        if not 0 <= begin <= end <= self.size:
            raise ProbexError(f"{self.name}: no bytes {begin} to {end} in {self.size}")
        self.fetch([(begin, end)])
        data = np.empty(end - begin, np.uint8)
        with self._lock:
            for at, held in self._held:
                first, last = max(at, begin), min(at + len(held), end)
                if first < last:
                    data[first - begin : last - begin] = held[first - at : last - at]
        return data

    def forget(self) -> None:
        """Drops from memory what was fetched, but for the beginning of the file."""
        with self._lock:
            self._held = [(at, held) for at, held in self._held if at == 0]

    def check_unchanged(self) -> None:
        """Nothing to do: every answer was compared with the first."""

    def close(self) -> None:
        """Drops what was fetched."""
        with self._lock:
            self._held = []

    def _gaps(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """What of some ranges is not held."""
        with self._lock:
            held = sorted((at, at + len(data)) for at, data in self._held)
        gaps = []
        for begin, end in ranges:
            for first, last in held:
                if last > begin and first < end:
                    if begin < first:
                        gaps.append((begin, first))
                    begin = last
            if begin < end:
                gaps.append((begin, end))
        return gaps

    def _fetched(self, begin: int, end: int, whole: bool = True) -> None:
        """Requests one range, and holds and keeps what comes."""
        try:
            data = np.empty(end - begin, np.uint8)
        except MemoryError as error:
            raise ProbexError(f"{self.name}: no memory for {end - begin} bytes of it") from error
        done = 0
        for piece in self._url.stream(begin, end, whole=whole):
            data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
            self._remote.on_bytes(len(piece))
        self._check(self._url.answer)
        data = data[:done]
        if self._cache is not None:
            self._cache.put(begin, data)
        with self._lock:
            self._held.append((begin, data))

    def _check(self, answer: Answer) -> None:
        """What the server says of the file must be what the hub's list says."""
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
            self._cache = _Kept(self._remote.cache, content)

    def _from_cache(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Holds what the cache has of some ranges."""
        if self._cache is not None:
            found = [kept for begin, end in ranges for kept in self._cache.get(begin, end)]
            with self._lock:
                self._held += found


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that lie close together as one, sorted.

    Example:
      >>> merged([(900_000, 900_010), (100, 200), (200, 300), (5_000, 5_001)])
      [(100, 5001), (900000, 900010)]
    """
    from fsspec.utils import merge_offset_ranges

    begins, ends = [begin for begin, _ in ranges], [end for _, end in ranges]
    _, begins, ends = merge_offset_ranges([""] * len(ranges), begins, ends, max_gap=_GAP_BYTES)
    return list(zip(begins, ends, strict=True))


class _Kept:
    """Ranges of one file in a folder, each a file `BEGIN-END` with its checksum at the end."""

    def __init__(self, cache: Path, content: str):
        self._folder = cache / hashlib.sha256(content.encode()).hexdigest()

    def put(self, begin: int, data: np.ndarray) -> None:
        if not len(data):
            return
        path = self._folder / f"{begin}-{begin + len(data)}"
        partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        with disk_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data.data)
                file.write(_sum(data))
            partial.replace(path)

    def get(self, begin: int, end: int) -> list[tuple[int, np.ndarray]]:
        """What is kept of a range; damaged files are thrown away."""
        found = []
        for path in self._files():
            first, _, last = path.name.partition("-")
            if not (first.isdigit() and last.isdigit() and int(first) < end and begin < int(last)):
                continue
            with disk_errors(path):
                content = path.read_bytes()
            data = np.frombuffer(content, np.uint8)[:-_CRC_BYTES]
            if len(data) == int(last) - int(first) and _sum(data) == content[-_CRC_BYTES:]:
                found.append((int(first), data))
            else:
                path.unlink(missing_ok=True)
        return found

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.iterdir())
        except OSError:
            return []


def _sum(data: np.ndarray) -> bytes:
    return zlib.crc32(data.data).to_bytes(_CRC_BYTES, "little")
