"""One writer of a folder in a bucket: an object that one process holds, made by a conditional put.

Its holder writes it anew every few seconds. One that is not, or whose process has ended on this
machine, whoever comes next takes over; that, too, is a conditional put, so that one of many does.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from probex_jax.bucket_paths import GUARDS, BucketPath, Version
from probex_jax.buckets import Conflict
from probex_jax.errors import ProbexError

# A lock is stale that was not written anew for so long; its holder does it a few times in that.
STALE_S = 60.0
_BEATS = 4
_TRIES = 20  # of one that changes hands while it is looked at
_LONGEST_NOTE = 1000
# In a folder while a process writes it, and left behind if that process is killed.
WRITER_LOCK = ".writer.lock"


class BucketLock:
    """A lock object.

    Args:
      path: the object.
    """

    def __init__(self, path: BucketPath):
        self.path, self._token = path, uuid.uuid4().hex
        self._ended, self._state = threading.Event(), threading.RLock()
        self._version: Version = {}
        self._beat_at, self.is_lost = 0.0, False

    def acquire(self) -> bool:
        """Whether it is held from now on."""
        for _ in range(_TRIES):
            try:
                self._version = self._put(over=None)
                break
            except Conflict:
                pass
            try:
                version, said = self._read()
                if said.get("token") == self._token:  # the answer to our put was lost
                    self._version = version
                    break
                if not self._is_stale(said):
                    return False
                self._version = self._put(over=version)
                break
            except (FileNotFoundError, Conflict):
                continue  # it was released, or another process was faster
        else:
            return False
        threading.Thread(target=self._keep_fresh, daemon=True).start()
        GUARDS[self] = self._check
        return True

    def release(self) -> None:
        """Ends it, unless another process has taken it over; if that fails, it becomes stale."""
        GUARDS.pop(self, None)
        self._ended.set()
        with self._state, suppress(ProbexError):  # no beat is under way
            self._beat()  # deletions have no conditions, but nobody takes over a fresh lock
            version, self._version = self._version, {}
            if version and not self.is_lost:
                self.path.unlink()

    def note(self) -> str:
        """Who holds it, in brackets, for an error message."""
        with suppress(FileNotFoundError, KeyError, ProbexError):
            said = self._read()[1]
            note = f" (pid {said['pid']} on {said['host']} since {said['since']})"
            return note if note.isprintable() else ""
        return ""

    def owner(self) -> str:
        """The token of who holds it; "" if nobody does."""
        with suppress(FileNotFoundError):
            return str(self._read()[1].get("token", ""))
        return ""

    def _put(self, over: Version | None) -> Version:
        about = {
            "token": self._token,
            "pid": os.getpid(),
            "host": platform.node(),
            "processes": _processes(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "beat": uuid.uuid4().hex,  # no two versions are alike
        }
        at = time.time()
        version = self.path.put_over(json.dumps(about).encode(), over)
        self._beat_at = at
        return version

    def _read(self) -> tuple[Version, dict[str, Any]]:
        """Its version, and what it says; of one that is damaged nothing."""
        data, version = self.path.read_versioned()
        with suppress(ValueError, RecursionError):
            said = json.loads(data[:_LONGEST_NOTE])
            if isinstance(said, dict) and {"token", "pid", "host", "since"} <= said.keys():
                return version, said
        return version, {}

    def _is_stale(self, said: dict[str, Any]) -> bool:
        if said.get("processes") == _processes() and not _is_running(said["pid"]):
            return True
        # Both times are the server's: clocks of hosts differ.
        clock = self.path.with_name(f".clock-{self._token}")
        clock.put_over(b"", None)
        try:
            return clock.stat().st_mtime - self.path.stat().st_mtime > STALE_S
        finally:
            clock.unlink()

    def _keep_fresh(self) -> None:
        while not self._ended.wait(STALE_S / _BEATS):
            with suppress(ProbexError):  # the next one may come through
                self._beat()

    def _beat(self) -> None:
        with self._state:
            if not self._version or self.is_lost:
                return
            try:
                self._version = self._put(over=self._version)
            except Conflict:
                try:
                    self._version, said = self._read()
                    self.is_lost = said.get("token") != self._token
                except FileNotFoundError:
                    self.is_lost = True

    def _check(self, path: BucketPath) -> None:
        """Raises a ProbexError if a path is in the lock's folder and the lock is another's."""
        if self.path.parent not in path.parents:
            return
        if time.time() - self._beat_at > STALE_S / 2:  # this process was stopped, or cut off
            self._beat()
        if self.is_lost:
            raise ProbexError(
                f"{self.path.parent}: another process took over here{self.note()}, since this one "
                f"did not answer for {STALE_S:g} s; run the same command again"
            )


def _processes() -> str:
    """Where a pid means the same process as here; nowhere else if that is not known."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex


def _is_running(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, TypeError, OverflowError):
        pass
    return True


_HELD: set[tuple[BucketPath, int]] = set()


@contextmanager
def one_writer(folder: BucketPath, *, beside: bool = False) -> Iterator[None]:
    """Keeps other processes from writing a folder; as `files.one_writer`.

    Args:
      folder: which.
      beside: does not matter here: the lock is in the folder.

    Yields:
      None.

    Raises:
      ProbexError: if another process is writing it; the message says which.
    """
    path, key = folder / WRITER_LOCK, (folder, threading.get_ident())
    if key in _HELD:
        yield
        return
    lock = BucketLock(path)
    if not lock.acquire():
        raise ProbexError(
            f"{folder}: another process is writing here{lock.note()}; if it was killed, try again "
            f"after {STALE_S:g} s"
        )
    try:
        _HELD.add(key)
        yield
    finally:
        _HELD.discard(key)
        lock.release()


def writer_of(folder: BucketPath) -> str:
    """What tells the writer of a folder from others; as `files.writer_of`.

    Args:
      folder: that `one_writer` keeps.

    Returns:
      A text; "" if nobody writes the folder.
    """
    return BucketLock(folder / WRITER_LOCK).owner()
