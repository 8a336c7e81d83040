"""Reads ranges of bytes from a file. Positioned reads: safe from several threads at once."""

import os
import stat
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

from probex_jax.errors import ProbexError

# Modification times are as coarse as the kernel's clock: 10 ms or less.
_CLOCK_TICK_NS = 50_000_000


class ByteRanges:
    """One open regular file, not mapped into memory: a file cut short meanwhile is an error.

    Attributes:
      name: the path, for messages.
      size: in bytes.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        try:
            # Without O_NONBLOCK, opening a pipe would block for ever.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ProbexError(f"{path}: cannot be opened: {error.strerror}") from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ProbexError(f"{path}: not a regular file")
        self.size = status.st_size
        self._written = status.st_mtime_ns
        # A file written just now may be written again with the same time: compare checksums.
        self._sums: list[tuple[int, int, int]] | None = None
        if abs(time.time_ns() - status.st_mtime_ns) < _CLOCK_TICK_NS:
            self._sums = []

    def check_unchanged(self) -> None:
        """Raises a ProbexError if the file was written to since it was opened."""
        status = os.fstat(self._descriptor)
        is_same = (status.st_size, status.st_mtime_ns) == (self.size, self._written)
        known, self._sums = self._sums, None
        if not is_same or any(zlib.crc32(self.read(a, b).data) != crc for a, b, crc in known or ()):
            raise ProbexError(f"{self.path}: changed while it was read; try again")

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes `begin:end` as a new array of uint8."""
        try:
            data = np.empty(end - begin, np.uint8)
        except MemoryError as error:
            raise ProbexError(f"{self.path}: no memory for {end - begin} bytes of it") from error
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: read after it was closed")
        done = 0
        try:
            while done < len(data):
                # One call reads at most 2 GiB.
                rest = data[done:] if done else data
                count = os.preadv(self._descriptor, [rest.data], begin + done)
                if count == 0:
                    raise ProbexError(
                        f"{self.path}: became shorter while it was open: {len(data) - done} bytes "
                        f"are missing of {begin}:{end}"
                    )
                done += count
        except MemoryError as error:
            raise ProbexError(f"{self.path}: no memory for {end - begin} bytes of it") from error
        except OSError as error:
            raise ProbexError(f"{self.path}: cannot be read: {error.strerror}") from error
        if self._sums is not None:
            self._sums.append((begin, end, zlib.crc32(data.data)))
        return data

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Does nothing: local ranges are read on demand."""

    def forget(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "ByteRanges":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_small(path: Path, limit: int) -> bytes:
    """Reads a small file whole; more than `limit` bytes are a ProbexError."""
    with ByteRanges(path) as file:
        if file.size > limit:
            raise ProbexError(f"{path}: {file.size} bytes, the limit is {limit}")
        return file.read(0, file.size).tobytes()
