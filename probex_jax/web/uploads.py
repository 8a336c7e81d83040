"""Files that strangers send: a folder of their own, a limit for each and all, emptied."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors

# What was not asked for again since so long is removed, also halves of files that never came whole.
_KEPT_S = 600.0
_SWEEP_S = 30.0
# All that may lie there at a time, in files of the largest size.
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
        self._ended = threading.Event()
        self._sweeper = threading.Thread(target=self._keep_sweeping, daemon=True)
        self._sweeper.start()

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A new folder for the files of one request, removed after it.

        Raises:
          Full: if too much lies here already, or on the disk.
        """
        self.check_room()
        with (
            disk_errors(self.folder),
            tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as path,
        ):
            yield Path(path)

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
        with path.open("wb") as file:
            async for chunk in chunks:
                received += len(chunk)
                if received > self.file_bytes:
                    raise self.too_large(name)
                file.write(chunk)

    def too_large(self, name: str) -> TooLarge:
        """What is said of a file over the limit."""
        return TooLarge(f"{name}: larger than the {self.file_bytes / 2**20:,.0f} MiB taken here")

    def check_room(self) -> None:
        """Raises `Full` where another file might not fit."""
        held = sum(file.stat().st_size for file in _files(self.folder))
        free = shutil.disk_usage(self.folder).free - _DISK_RESERVE
        if held > (_FILES - 1) * self.file_bytes or free < self.file_bytes:
            raise Full("too many files are being read at this moment; try again in a minute")

    def remove(self, paths: list[Path]) -> None:
        """Removes files of the folder."""
        for path in paths:
            if self.holds(path):
                path.unlink(missing_ok=True)

    def holds(self, path: Path) -> bool:
        """Whether a path is of a file in the folder."""
        return path.resolve().is_relative_to(self.folder) and path.is_file()

    def sweep(self, older_than_s: float = _KEPT_S) -> None:
        """Removes files that nobody touched for so long."""
        for file in _files(self.folder):
            try:
                if time.time() - file.stat().st_mtime >= older_than_s:
                    file.unlink()
            except OSError:
                continue  # whose owner was faster
        for folder in sorted(self.folder.rglob("*"), reverse=True):
            try:
                if folder.is_dir() and time.time() - folder.stat().st_mtime >= older_than_s:
                    folder.rmdir()
            except OSError:
                continue

    def close(self) -> None:
        """Removes the folder and all in it."""
        self._ended.set()
        self._sweeper.join()
        self._owned.cleanup()

    def _keep_sweeping(self) -> None:
        while not self._ended.wait(_SWEEP_S):
            self.sweep()


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path
        except OSError:
            continue
