"""Uploaded files: in a temporary folder, with limits for each and for all."""

from __future__ import annotations

import fcntl
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

_PREFIX = "probex_jax-uploads-"
# Per request.
MAX_FILES = 64
# Unused files are removed after so many seconds.
_KEPT_S = 600.0
_SWEEP_S = 30.0
# Limits of the folder: bytes in files of the largest size, and folders, with a few spare ones for
# uploads that are about to be read.
_FILES, _FOLDERS, _SPARE = 16, 10_000, 100
# Even when space is short, unused files are kept so long.
_GRACE_S = 30.0
_DISK_RESERVE = 2**30


class Refused(ProbexError):
    """An upload or request is refused.

    Attributes:
      status: the HTTP status of the answer.
    """

    status = 400


class TooLarge(Refused):
    """A file is too large."""

    status = 413


class Full(Refused):
    """There is no space for another file now."""

    status = 503


class NotWritten(Refused):
    """The file could not be written."""

    status = 507


@dataclass
class _Folder:
    """The users of a folder, which is kept until they are done."""

    users: int = 1
    n_bytes: int = 0
    unused_since: float = 0.0


class Uploads:
    """A temporary folder, removed on `close`; folders that killed servers left are removed first.

    Args:
      file_bytes: maximal size of a file.

    Attributes:
      folder: its path; it holds nothing but uploaded files.

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
        _clear_left()
        self.folder, self._descriptor = _owned()
        self._lock = threading.Lock()
        self._folders: dict[Path, _Folder] = {}
        self._held = 0  # bytes
        self._ended = threading.Event()
        self._sweeper = threading.Thread(target=self._keep_sweeping, daemon=True)
        self._sweeper.start()

    @contextmanager
    def coming(self, n_bytes: int) -> Iterator[Arrival]:
        """Receives the files of one request.

        There must be space for all announced bytes, but space is only taken as bytes arrive: slow
        senders take none from others.

        Args:
          n_bytes: announced size.

        Yields:
          The writer. Its files are kept, but removed after an error.

        Raises:
          Full: if there is no space, now or later.
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
        """A new folder, removed on exit."""
        folder = self._new_folder(spare=_SPARE)
        try:
            yield folder
        finally:
            self._release([folder])

    @contextmanager
    def used(self, paths: Iterable[Path]) -> Iterator[None]:
        """Keeps files; on exit they are removed unless others use them."""
        with self._lock:
            folders = [folder for folder in {p.parent for p in paths} if folder in self._folders]
            for folder in folders:
                self._folders[folder].users += 1
        try:
            yield
        finally:
            self._release(folders)

    def check_size(self, n_bytes: int, name: str) -> None:
        """Raises `TooLarge` for a file over the limit."""
        if n_bytes > self.file_bytes:
            limit = self.file_bytes / 2**20
            raise TooLarge(f"{name}: larger than the limit of {limit:,.0f} MiB")

    def sweep(self, older_than_s: float = _KEPT_S) -> None:
        """Removes files that were unused for so long."""
        before = time.monotonic() - older_than_s
        with self._lock:
            known = list(self._folders.items())
            old = [path for path, it in known if not it.users and it.unused_since <= before]
            self._forget(old)
        _remove(old)

    def close(self) -> None:
        """Removes the folder with its content."""
        self._ended.set()
        self._sweeper.join()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._descriptor)

    def _new_folder(self, spare: int = 0) -> Path:
        """A new folder with a random name."""
        with self._lock:
            for old in self._abandoned():
                if len(self._folders) < _FOLDERS + spare:
                    break
                self._forget([old])
                _remove([old])
            if len(self._folders) >= _FOLDERS + spare:
                raise Full("too many files at the moment; try again in a minute")
            with _written("a folder for uploads"):
                folder = Path(tempfile.mkdtemp(dir=self.folder))
            self._folders[folder] = _Folder()
        return folder

    def _take(self, folder: Path, n_bytes: int) -> None:
        """Takes space for bytes that have arrived."""
        with self._lock:
            self._make_room(n_bytes)
            self._held += n_bytes
            self._folders[folder].n_bytes += n_bytes

    def _make_room(self, n_bytes: int) -> None:
        """Removes abandoned files if space is short; call it with the lock."""
        most = _FILES * self.file_bytes - n_bytes
        for old in self._abandoned() if self._held > most else ():
            if self._held <= most:
                break
            self._forget([old])
            _remove([old])
        if self._held > most:
            raise Full("too many files are being read at the moment; try again in a minute")
        with _written("a file"):
            free = shutil.disk_usage(self.folder).free
        if free < n_bytes + _DISK_RESERVE:
            raise Full("the server's disk is too full for this file")

    def _abandoned(self) -> list[Path]:
        """Folders without users for longer than the grace period, oldest first."""
        before = time.monotonic() - _GRACE_S
        unused = [(it.unused_since, path) for path, it in self._folders.items() if not it.users]
        return [path for since, path in sorted(unused) if since <= before]

    def _release(self, folders: Sequence[Path], *, keep: bool = False) -> None:
        """Ends one use of each folder; the last user removes it, unless it is kept for `sweep`."""
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
            with suppress(OSError):  # cleaners of /tmp go by age
                os.utime(self.folder)


def _owned() -> tuple[Path, int]:
    """A new folder and its descriptor, whose lock ends with the process, however that ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        opened = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: nobody removes the folder
            fcntl.flock(opened, fcntl.LOCK_EX)
        if folder.exists():  # else another server saw it before its lock
            return folder, opened
        os.close(opened)


def _clear_left() -> None:
    """Removes our user's folders of uploads that no server holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(opened).st_uid == os.geteuid():
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(opened)


class Arrival:
    """Writes the files of one request one after the other, each to its own folder.

    Args:
      uploads: their folder and limits.
      n_bytes: announced size.

    Attributes:
      paths: of the files.
    """

    def __init__(self, uploads: Uploads, n_bytes: int):
        self.paths: list[Path] = []
        self._missing = n_bytes
        self._file: BinaryIO | None = None
        self._uploads, self._name, self._size = uploads, "", 0

    def begin(self, name: str, file_name: str = "") -> None:
        """Starts a file.

        Args:
          name: as sent.
          file_name: on disk, if different.
        """
        self.end()
        self._name, self._size = name, 0
        self.paths.append(self._uploads._new_folder() / (file_name or name))
        with _written(name):
            self._file = self.paths[-1].open("wb")

    def write(self, data: bytes) -> None:
        """Appends to the current file.

        Raises:
          TooLarge: as soon as it is over the limit.
          Full: if there is no space left.
          NotWritten: if the disk fails.
        """
        if self._file is None:
            raise ProbexError("no file was started")
        self._size += len(data)
        self._uploads.check_size(self._size, self._name)
        self._missing -= len(data)
        if self._missing < 0:
            raise Refused(f"{self._name}: longer than announced")
        self._uploads._take(self.paths[-1].parent, len(data))
        with _written(self._name):
            self._file.write(data)

    async def receive(self, chunks: AsyncIterator[bytes], name: str, file_name: str) -> Path:
        """Writes a file from a stream; returns its path. Raises as `write`."""
        self.begin(name, file_name)
        async for chunk in chunks:
            self.write(chunk)
        self.end()
        return self.paths[-1]

    def end(self) -> None:
        """Closes the current file, if there is one."""
        file, self._file = self._file, None
        if file is not None:
            with _written(self._name):
                file.close()


@contextmanager
def _written(name: str) -> Iterator[None]:
    """Turns errors of the operating system into `NotWritten`."""
    try:
        with disk_errors(Path(name)):
            yield
    except ProbexError as error:
        raise NotWritten(str(error)) from error


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
