"""Files that strangers send: a folder of their own, a limit for each and all, emptied."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors

# That come together.
MAX_FILES = 64
# What was not asked for again since so long is removed.
_KEPT_S = 600.0
_SWEEP_S = 30.0
# All that may lie there at a time, in files of the largest size, and how many; and a few more for
# what has been sent and is to be read.
_FILES, _FOLDERS, _SPARE = 16, 10_000, 100
# What nobody uses is waited for so long, also where room is short.
_GRACE_S = 30.0
_DISK_RESERVE = 2**30


class Refused(ProbexError):
    """What somebody sends is not taken.

    Attributes:
      status: of the answer.
    """

    status = 400


class TooLarge(Refused):
    """A file is over the limit."""

    status = 413


class Full(Refused):
    """There is no room for another file now."""

    status = 503


class NotWritten(Refused):
    """The disk does not take it."""

    status = 507


@dataclass
class _Folder:
    """Who uses a folder: it is not swept before they are done."""

    users: int = 1
    n_bytes: int = 0
    unused_since: float = 0.0


class Uploads:
    """A temporary folder, removed on `close`.

    Args:
      file_bytes: the most that one file may have.

    Attributes:
      folder: its path; whatever lies in it is a file that somebody sent.

    Example:
      >>> uploads = Uploads(1000)
      >>> with uploads.coming(1) as arrival:
      ...     arrival.begin("mine")
      ...     arrival.write(b"x")
      >>> with uploads.used(arrival.paths):
      ...     arrival.paths[0].read_bytes()
      b'x'
      >>> list(uploads.folder.iterdir())
      []
      >>> uploads.close()
    """

    def __init__(self, file_bytes: int):
        self.file_bytes = file_bytes
        self._owned = tempfile.TemporaryDirectory(prefix="probex_jax-uploads-")
        self.folder = Path(self._owned.name).resolve()
        self._lock = threading.Lock()
        self._folders: dict[Path, _Folder] = {}
        self._held = 0  # bytes
        self._ended = threading.Event()
        self._sweeper = threading.Thread(target=self._keep_sweeping, daemon=True)
        self._sweeper.start()

    @contextmanager
    def coming(self, n_bytes: int) -> Iterator[Arrival]:
        """Where the files of one request are written.

        There has to be room for all that was announced, but it is taken only as bytes come: who
        sends slowly, or not at all, takes none from others.

        Args:
          n_bytes: how many were announced.

        Yields:
          Where they are written. The files stay after it, but for an error: then they are removed.

        Raises:
          Full: if there is no room, now or later.
        """
        with self._lock:
            self._make_room(n_bytes)
        arrival, whole = Arrival(self, n_bytes), False
        try:
            yield arrival
            arrival.end()
            whole = True
        finally:
            with suppress(NotWritten):
                arrival.end()
            self._release([path.parent for path in arrival.paths], keep=whole)

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A new folder for the files of one request, removed after it."""
        folder = self._new_folder(spare=_SPARE)
        try:
            yield folder
        finally:
            self._release([folder])

    @contextmanager
    def used(self, paths: Iterable[Path]) -> Iterator[None]:
        """While this lasts, these files stay; then they are removed, unless others use them."""
        with self._lock:
            folders = [folder for folder in {p.parent for p in paths} if folder in self._folders]
            for folder in folders:
                self._folders[folder].users += 1
        try:
            yield
        finally:
            self._release(folders)

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

    def sweep(self, older_than_s: float = _KEPT_S) -> None:
        """Removes files that nobody has used for so long."""
        before = time.monotonic() - older_than_s
        with self._lock:
            known = list(self._folders.items())
            old = [path for path, it in known if not it.users and it.unused_since <= before]
            self._forget(old)
        _remove(old)

    def close(self) -> None:
        """Removes the folder and all in it."""
        self._ended.set()
        self._sweeper.join()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._owned.cleanup()

    def _new_folder(self, spare: int = 0) -> Path:
        """A new folder, whose name nobody guesses."""
        with self._lock:
            for old in self._left_behind():
                if len(self._folders) < _FOLDERS + spare:
                    break
                self._forget([old])
                _remove([old])
            if len(self._folders) >= _FOLDERS + spare:
                raise Full("too many files lie here at this moment; try again in a minute")
            with _written("a folder for uploads"):
                folder = Path(tempfile.mkdtemp(dir=self.folder))
            self._folders[folder] = _Folder()
        return folder

    def _take(self, folder: Path, n_bytes: int) -> None:
        """Room for bytes that have come."""
        with self._lock:
            self._make_room(n_bytes)
            self._held += n_bytes
            self._folders[folder].n_bytes += n_bytes

    def _make_room(self, n_bytes: int) -> None:
        """Where room is short, removes what was left behind; to be called with the lock."""
        most = _FILES * self.file_bytes - n_bytes
        for old in self._left_behind() if self._held > most else ():
            if self._held <= most:
                break
            self._forget([old])
            _remove([old])
        if self._held > most:
            raise Full("too many files are being read at this moment; try again in a minute")
        with _written("a file"):
            free = shutil.disk_usage(self.folder).free
        if free < n_bytes + _DISK_RESERVE:
            raise Full("the disk of the server is too full for this file")

    def _left_behind(self) -> list[Path]:
        """What nobody uses, and was not asked for soon after it came; the oldest first."""
        before = time.monotonic() - _GRACE_S
        unused = [(it.unused_since, path) for path, it in self._folders.items() if not it.users]
        return [path for since, path in sorted(unused) if since <= before]

    def _release(self, folders: Sequence[Path], *, keep: bool = False) -> None:
        """One user less of each folder; the last one removes it, or leaves it to be swept."""
        with self._lock:
            for folder in folders:
                self._folders[folder].users -= 1
                self._folders[folder].unused_since = time.monotonic()
            unused = [folder for folder in folders if not keep and not self._folders[folder].users]
            self._forget(unused)
        _remove(unused)

    def _forget(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            self._held -= self._folders.pop(folder).n_bytes

    def _keep_sweeping(self) -> None:
        while not self._ended.wait(_SWEEP_S):
            self.sweep()
            with suppress(OSError):  # those who clean /tmp go by age
                os.utime(self.folder)


class Arrival:
    """Files that come in one request, one after the other, each in a folder of its own.

    Args:
      uploads: where they go.
      n_bytes: how many were announced.

    Attributes:
      paths: of those that came.
    """

    def __init__(self, uploads: Uploads, n_bytes: int):
        self.paths: list[Path] = []
        self._missing = n_bytes
        self._file: BinaryIO | None = None
        self._uploads, self._name, self._size = uploads, "", 0

    def begin(self, name: str, file_name: str = "") -> None:
        """Begins a file.

        Args:
          name: what the sender calls it.
          file_name: what it is called here, if not the same.
        """
        self.end()
        self._name, self._size = name, 0
        self.paths.append(self._uploads._new_folder() / (file_name or name))
        with _written(name):
            self._file = self.paths[-1].open("wb")

    def write(self, data: bytes) -> None:
        """Adds to the file that was begun.

        Raises:
          TooLarge: as soon as it is over the limit.
          Full: if there is no room any more.
          NotWritten: if the disk does not take it.
        """
        if self._file is None:
            raise ProbexError("no file was begun")
        self._size += len(data)
        self._uploads.check_size(self._size, self._name)
        self._missing -= len(data)
        if self._missing < 0:
            raise Refused(f"{self._name}: more comes than was announced")
        self._uploads._take(self.paths[-1].parent, len(data))
        with _written(self._name):
            self._file.write(data)

    async def receive(self, chunks: AsyncIterator[bytes], name: str, file_name: str) -> Path:
        """Writes a file as it comes; arguments and errors as above. Returns its path."""
        self.begin(name, file_name)
        async for chunk in chunks:
            self.write(chunk)
        self.end()
        return self.paths[-1]

    def end(self) -> None:
        """Ends the file that is being written, if there is one."""
        file, self._file = self._file, None
        if file is not None:
            with _written(self._name):
                file.close()


@contextmanager
def _written(name: str) -> Iterator[None]:
    """What the operating system says of a disk, as a line about a file."""
    try:
        with disk_errors(Path(name)):
            yield
    except ProbexError as error:
        raise NotWritten(str(error)) from error


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
