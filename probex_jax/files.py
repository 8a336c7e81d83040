"""Small files and folders that a kill cannot leave half-written or inconsistent.

filelock locks files. It lacks what is around it here: who writes is named in the lock, and a file
system without locks will do. A `BucketPath` has its own way: one put instead of a rename, a lock
object instead of a locked file.
"""

import errno
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import singledispatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from probex_jax import bucket_locks
from probex_jax.bucket_locks import WRITER_LOCK
from probex_jax.bucket_paths import BucketPath
from probex_jax.errors import ProbexError

# Of disks that are full, or full for this user.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)
_LONGEST_NOTE = 300
_MAX_DEPTH = 64


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all.

    Args:
      path: the file; its folder must exist.
      value: what JSON can hold.

    Raises:
      ProbexError: if the file cannot be written, or a text in it is not valid Unicode.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Args:
      path: the file; its folder must exist.
      text: its content.

    Raises:
      ProbexError: if the file cannot be written, or the text is not valid Unicode.
    """
    write_bytes(path, encoded(text, path))


def encoded(text: str, path: Path) -> bytes:
    """A text in UTF-8.

    Args:
      text: it may hold an unpaired surrogate, as JSON and names of files can spell them.
      path: what errors name.

    Returns:
      Its bytes.

    Raises:
      ProbexError: if it is not valid Unicode.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        odd = text[max(0, error.start - 40) : error.end]
        raise ProbexError(f"{path}: not written: not valid Unicode: …{odd}") from error


@singledispatch
def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Args:
      path: the file; its folder must exist.
      data: its content.

    Raises:
      ProbexError: if the file cannot be written.
    """
    # A unique name: if two processes write one file, the last one wins and the file is whole.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with disk_errors(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:  # a full disk is not to stay full
            partial.unlink(missing_ok=True)
            raise


write_bytes.register(BucketPath, BucketPath.write)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns OSErrors into one line that names the file.

    Args:
      path: the file, for errors that name none.

    Yields:
      None.

    Raises:
      ProbexError: for every OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise ProbexError(f"{error.filename or path}: {error.strerror or error}") from error


def is_full(error: BaseException) -> bool:
    """Whether an error of whatever library comes from a disk that is full, or full for this user.

    Args:
      error: the error.

    Returns:
      Whether it says so.
    """
    return any(os.strerror(code) in str(error) for code in _FULL)


@singledispatch
@contextmanager
def one_writer(folder: Path, *, beside: bool = False) -> Iterator[None]:
    """Keeps other processes from writing a folder; readers are unaffected.

    Enter it before reading what the writing depends on. The system releases the lock however the
    process ends. A thread that holds a folder may enter it again. On a file system that is
    read-only or has no locks, nobody is kept out.

    Args:
      folder: made if missing; removed again if nothing was written to it.
      beside: whether the lock lies beside the folder, which may then be a file and is not made.

    Yields:
      None.

    Raises:
      ProbexError: if another process is writing the folder; the message says which.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> with one_writer(folder), one_writer(folder):
      ...     write_json(folder / "a.json", 1)
      >>> [path.name for path in folder.iterdir()]
      ['a.json']
    """
    folder = folder.resolve()  # one name for one lock
    path = folder.with_name(f".{folder.name}{WRITER_LOCK}") if beside else folder / WRITER_LOCK
    with disk_errors(folder):
        is_new = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
    if lock.is_locked:  # already, by this thread
        yield
        return
    with disk_errors(path):
        try:
            lock.acquire(blocking=False)
            since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
            path.write_text(f"pid {os.getpid()} on {platform.node()} since {since}")
        except Timeout:
            raise ProbexError(f"{folder}: another process is writing here{_note(path)}") from None
        except OSError as error:
            lock.release()
            if error.errno not in (*_NO_LOCKS, errno.EROFS):
                raise
    try:
        yield
    finally:
        if lock.is_locked:
            # Removed while it is held: a process that has opened it meanwhile sees that it is gone.
            path.unlink(missing_ok=True)
            lock.release()
        if is_new:
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()


one_writer.register(BucketPath, bucket_locks.one_writer)


@singledispatch
def writer_of(folder: Path) -> str:
    """What tells the writer of a folder from others, for those that work for one.

    Args:
      folder: that `one_writer` keeps.

    Returns:
      A text; "" if nobody writes the folder, or there are no locks.
    """
    return _note(folder.resolve() / WRITER_LOCK)


writer_of.register(BucketPath, bucket_locks.writer_of)


def _note(path: Path) -> str:
    """The note that a writer left in its lock file, in brackets."""
    with suppress(OSError, ValueError):
        note = path.read_bytes()[:_LONGEST_NOTE].decode()
        if note and note.isprintable():
            return f" ({note})"
    return ""


def read_json(path: Path) -> Any:
    """Reads a JSON file that this library wrote, and that may be damaged.

    Args:
      path: the file.

    Returns:
      Its value.

    Raises:
      ProbexError: if it cannot be read, is no JSON, is nested deeply, or holds invalid Unicode.
      FileNotFoundError, NotADirectoryError: if there is no such file.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ProbexError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_json(data, str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """Parses JSON text as `read_json` does.

    Args:
      data: the text.
      where: what errors name.

    Returns:
      Its value.

    Raises:
      ProbexError: as `read_json`.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(text)
        if "\\u" in text:  # an escape can spell invalid Unicode
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ProbexError(f"{where}: not JSON: {error}") from error
    if text.count("[") + text.count("{") > _MAX_DEPTH:
        _check_depth(value, where)
    return value


def _check_depth(value: Any, where: str) -> None:
    values = [value]
    for _ in range(_MAX_DEPTH + 1):
        lists = [
            v.values() if isinstance(v, dict) else v for v in values if isinstance(v, (dict, list))
        ]
        if not lists:
            return
        values = [item for items in lists for item in items]
    raise ProbexError(f"{where}: not JSON of ours: nested more than {_MAX_DEPTH} deep")


def user_cache() -> Path:
    """Where we keep what can be made again: `probex_jax` in $XDG_CACHE_HOME or ~/.cache.

    Returns:
      The folder, which may not exist yet.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")  # relative ones are ignored, as XDG says
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "probex_jax"


def layer_folder(root: Path, layer: str) -> Path:
    """The folder that belongs to a layer.

    Strangers choose the names of layers; quoted, none leads out of `root`.

    Args:
      root: folder of all layers.
      layer: name of the layer.

    Returns:
      A folder in `root`, which may not exist yet.

    Raises:
      ProbexError: if the name cannot be the name of a folder.

    Example:
      >>> from pathlib import Path
      >>> layer_folder(Path("layers"), "../head.weight").as_posix()
      'layers/..%2Fhead.weight'
    """
    name = quote(layer, safe="")
    if not name.strip(".") or len(name) > 200:
        raise ProbexError(f"layer {layer[:100]!r}: its name is empty, dots alone or too long")
    return root / name
