"""Files that strangers send: a folder of their own, a limit for each and all, emptied."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors

# What was not asked for again since so long is removed.
_KEPT_S = 600.0
_SWEEP_S = 30.0
# All that may lie there or be on its way at a time, in files of the largest size.
_FILES = 16
_DISK_RESERVE = 2**30


class TooLarge(ProbexError):
    """A file is over the limit."""


class Full(ProbexError):
    """There is no room for another file now."""


class Uploads:
    """A temporary folder, removed on `close`.

    Args:
      file_bytes: the most that one file may have.

    Attributes:
      folder: its path; whatever lies in it is a file that somebody sent.

    Example:
      >>> uploads = Uploads(1000)
      >>> with uploads.place() as folder:
      ...     _ = (folder / "model.safetensors").write_bytes(b"x")
      >>> list(uploads.folder.iterdir())
      []
      >>> uploads.close()
    """

    def __init__(self, file_bytes: int):
        self.file_bytes = file_bytes
        self._owned = tempfile.TemporaryDirectory(prefix="probex_jax-uploads-")
        self.folder = Path(self._owned.name).resolve()
        self._lock, self._coming = threading.Lock(), 0
        self._ended = threading.Event()
        self._sweeper = threading.Thread(target=self._keep_sweeping, daemon=True)
        self._sweeper.start()

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A new folder for the files of one request, removed after it."""
        folder = self.new_folder()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def new_folder(self) -> Path:
        """A new folder, whose name nobody guesses."""
        with disk_errors(self.folder):
            return Path(tempfile.mkdtemp(dir=self.folder))

    @contextmanager
    def coming(self, n_bytes: int) -> Iterator[None]:
        """While this lasts, there is room for so many bytes that are on their way.

        Raises:
          Full: if there is not.
        """
        with self._lock:
            held = self._coming + sum(size for _, size, _ in _files(self.folder))
            if held + n_bytes > _FILES * self.file_bytes:
                raise Full("too many files are being read at this moment; try again in a minute")
            if shutil.disk_usage(self.folder).free < self._coming + n_bytes + _DISK_RESERVE:
                raise Full("the disk of the server is too full for this file")
            self._coming += n_bytes
        try:
            yield
        finally:
            with self._lock:
                self._coming -= n_bytes

    async def receive(self, chunks: AsyncIterator[bytes], path: Path, name: str) -> None:
        """Writes a body as it comes.

        Args:
          chunks: the body.
          path: where to.
          name: what the sender calls it.

        Raises:
          TooLarge: as soon as it is over the limit.
        """
        received = 0
        with disk_errors(path), path.open("wb") as file:
            async for chunk in chunks:
                received += len(chunk)
                self.check_size(received, name)
                file.write(chunk)

    def check_size(self, n_bytes: int, name: str) -> None:
        """Raises `TooLarge` for a file of more bytes than are taken."""
        if n_bytes > self.file_bytes:
            limit = self.file_bytes / 2**20
            raise TooLarge(f"{name}: larger than the {limit:,.0f} MiB taken here")

    def held(self, path: str) -> Path | None:
        """The file at a path in the folder; None where that is none, or leads out of it."""
        with suppress(OSError, ValueError):
            real = (self.folder / path).resolve()
            if real.is_relative_to(self.folder) and real.is_file():
                return real
        return None

    def remove(self, paths: list[Path]) -> None:
        """Removes files of the folder, and their own folders."""
        for path in paths:
            if (real := self.held(str(path))) is not None:
                real.unlink(missing_ok=True)
                with suppress(OSError):  # another file is in it
                    real.parent.rmdir()

    def touch(self, paths: list[Path]) -> None:
        """From now on these files are waited for."""
        for path in paths:
            with suppress(OSError):
                os.utime(path)

    def sweep(self, older_than_s: float = _KEPT_S) -> None:
        """Removes files that nobody touched for so long, and folders with nothing in them."""
        for path, _, touched in _files(self.folder):
            if time.time() - touched >= older_than_s:
                with suppress(OSError):  # whose owner was faster
                    os.unlink(path)
        for folder, _, _ in os.walk(self.folder, topdown=False):
            with suppress(OSError):  # something is in it
                if time.time() - os.stat(folder).st_mtime >= older_than_s:
                    os.rmdir(folder)

    def close(self) -> None:
        """Removes the folder and all in it."""
        self._ended.set()
        self._sweeper.join()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._owned.cleanup()

    def _keep_sweeping(self) -> None:
        while not self._ended.wait(_SWEEP_S):
            self.sweep()
            self.folder.mkdir(exist_ok=True)


def _files(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Path, size and time of every file that is still there."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                path = os.path.join(parent, name)
                status = os.lstat(path)
                yield path, status.st_size, status.st_mtime
