"""Folders of ours in a bucket, as paths that rooms use like those of a disk.

An object is written whole by one put, and read as it was then. What on a disk is made beside and
renamed is put in a bucket object by object, and last the one that makes it valid. Not
`etils.epath` or `fsspec`, whose paths know no conditional put (`bucket_locks` needs it), and which
`os` takes for a folder called "s3:"; here that raises one line.
"""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from probex_jax import buckets
from probex_jax.buckets.stores import obstore
from probex_jax.errors import ProbexError

# Requests at a time.
_AT_ONCE = 8

# Of an object: S3 knows it by its tag, Google's storage by its number.
Version = dict[str, str]

# Asked before each write: raises a ProbexError if this process may not write there any more.
GUARDS: dict[Any, Callable[["BucketPath"], None]] = {}


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path of a folder or file of ours, on a disk or in a bucket.

    Args:
      path: of a disk, or an address such as s3://BUCKET/FOLDER.

    Returns:
      A `Path`; of an address one whose methods work in the bucket, as far as there are any.

    Raises:
      ProbexError: if an address names no bucket, or has "." or ".." in it.

    Example:
      >>> as_path("stores/x"), str(as_path("s3://mine/stores") / "x"), as_path("s3://mine/x")
      (PosixPath('stores/x'), 's3://mine/stores/x', BucketPath('s3://mine/x'))
    """
    if isinstance(path, BucketPath):
        return path
    if not str(path).startswith(("s3:/", "gs:/")):
        return Path(path)
    found = BucketPath(str(path))
    if len(found.parts) < 3 or {".", ".."} & set(str(path).split("/")):
        raise ProbexError(f"{found}: expected an address such as s3://BUCKET/FOLDER")
    return found


def on_a_disk(path: str | os.PathLike[str]) -> Path:
    """The path of what has to be made on a disk.

    Args:
      path: as `as_path` takes it.

    Returns:
      A path of the disk.

    Raises:
      ProbexError: if it is an address in a bucket.
    """
    return Path(os.fspath(as_path(path)))


class BucketPath(type(Path())):  # type: ignore[misc]
    """An object, or all those below a key; `as_path` makes one.

    A folder is there while an object is below it. What a bucket cannot do raises a ProbexError.
    """

    __slots__ = ()

    def __str__(self) -> str:
        scheme, *keys = self.parts
        return f"{scheme}//{'/'.join(keys)}"

    def __fspath__(self) -> str:
        raise ProbexError(f"{self}: here a folder in a bucket will not do; give one on a disk")

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    absolute = resolve

    def is_absolute(self) -> bool:
        return True

    def expanduser(self) -> "BucketPath":
        return self

    def exists(self, **_: Any) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        return buckets.stated(str(self)) is not None

    def is_dir(self, **_: Any) -> bool:
        async def first(store: Any, key: str) -> bool:
            async for page in obstore().list(store, key or None, chunk_size=1):
                return bool(page)
            return False

        return self._asked(first)

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        with _as_of_a_disk(self):
            about = self._asked(obstore().head_async)
        time = about["last_modified"].timestamp()
        return os.stat_result((0o100644, 0, 0, 1, 0, 0, about["size"], time, time, time))

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of an asynchronous function of obstore for the object or folder."""
        store, key = buckets.store_of(str(self))
        with buckets.problems(str(self)):
            return buckets.waited(lambda: function(store, key, *arguments))

    def below(self) -> Iterator[tuple["BucketPath", str]]:
        """The objects below, at any depth, each with its tag."""
        yield from ((path, about["e_tag"] or "") for path, about in self.listed())

    def listed(self) -> Iterator[tuple["BucketPath", Any]]:
        """The objects below, at any depth, each with what the bucket says of it."""
        _, key = buckets.store_of(str(self))
        found = self._asked(lambda store, key: obstore().list(store, key or None).collect_async())
        for about in found:
            yield self / about["path"].removeprefix(key).lstrip("/"), about

    def iterdir(self) -> Iterator["BucketPath"]:
        found = buckets.listed(str(self))
        yield from (self / name for name in (*found.folders, *found.files))

    def glob(self, pattern: str, **__: Any) -> Iterator["BucketPath"]:
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def read_versioned(self) -> tuple[bytes, Version]:
        """The object's content, and which version of it that is."""

        async def whole(store: Any, key: str) -> tuple[bytes, Version]:
            found = await obstore().get_async(store, key)
            return bytes(await found.bytes_async()), _version(found.meta)

        with _as_of_a_disk(self):
            return self._asked(whole)

    def read_bytes(self) -> bytes:
        return self.read_versioned()[0]

    def read_text(self, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode()

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        if mode not in ("r", "rb"):
            os.fspath(self)
        data = io.BytesIO(self.read_bytes())
        return data if "b" in mode else io.TextIOWrapper(data, "utf-8")

    def write(self, data: bytes | Path) -> None:
        """Writes the object whole: bytes, or the content of a file of a disk."""
        for guard in list(GUARDS.values()):
            guard(self)
        self._asked(obstore().put_async, data)

    def put_over(self, data: bytes, over: Version | None) -> Version:
        """Writes the object if it is still that version, or is not there; whoever may write here.

        Raises:
          buckets.Conflict: if it is another one; one's own if an answer was lost, so give the
            content something of one's own to tell.
        """
        mode: Any = over or "create"
        put = partial(obstore().put_async, mode=mode)
        return _version(self._asked(put, data))

    def write_bytes(self, data: Any) -> int:
        self.write(data)
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode())

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Folders are not made."""

    touch = rmdir = mkdir

    def unlink(self, missing_ok: bool = False) -> None:
        buckets.delete(str(self))

    def remove(self, first: str = "") -> None:
        """Deletes all objects below; before others the one that makes the folder valid."""
        if first:
            (self / first).unlink()
        buckets.delete(*(str(path) for path, _ in self.below()))

    def upload(self, made: Path, last: str) -> None:
        """Puts the files of a folder of a disk in place of what is there.

        Args:
          made: the folder.
          last: the file that makes it valid, which is put last.
        """
        names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
        self.remove(first=last)
        _at_once(lambda name: (self / name).write(made / name), sorted(names - {last}))
        (self / last).write(made / last)

    def download(self, to: Path) -> None:
        """Fetches the object, or all that is below, to a file or folder of a disk."""

        def fetch(path: BucketPath) -> None:
            place = to.joinpath(*path.parts[len(self.parts) :])
            place.parent.mkdir(parents=True, exist_ok=True)
            with _as_of_a_disk(path), buckets.problems(str(path)), place.open("wb") as file:
                for piece in obstore().get(*buckets.store_of(str(path))):
                    file.write(piece)

        _at_once(fetch, [path for path, _ in self.below()] or [self])


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """A file or folder for those that read from a disk alone.

    Args:
      path: as `as_path` gives it.

    Yields:
      It; of one in a bucket a copy, for as long as this lasts.

    Raises:
      FileNotFoundError: if there is nothing in the bucket.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with TemporaryDirectory(prefix="probex-jax-") as made:
        path.download(Path(made, path.name))
        yield Path(made, path.name)


def sizes_below(folder: Path) -> dict[Path, int]:
    """The files of a folder, at any depth.

    Args:
      folder: as `as_path` gives it; it may be missing.

    Returns:
      Each with its size in bytes, in order.
    """
    found: dict[Path, int] = {}
    if isinstance(folder, BucketPath):
        return {path: about["size"] for path, about in folder.listed()}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # removed since
                found[Path(place, name)] = os.stat(Path(place, name)).st_size
    return dict(sorted(found.items()))


def put_and_delete(made: Path, path: Path) -> None:
    """Moves a file of the disk into a bucket.

    Args:
      made: the file.
      path: its place in the bucket.
    """
    as_path(path).write(made)  # type: ignore[attr-defined]
    made.unlink()


def s3_endpoint() -> str:
    """The server of S3 that the environment names.

    Returns:
      Its address; "" for Amazon's.
    """
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def s3_over_http() -> dict[str, str]:
    """What libraries built like obstore want to be told of a server of S3 without TLS.

    Returns:
      Their option; none if the server has TLS.
    """
    return {"allow_http": "true"} if s3_endpoint().startswith("http://") else {}


def remove_folder(path: Path, first: str = "") -> None:
    """Deletes a folder and all in it, if it is there.

    Args:
      path: the folder.
      first: the file that makes it valid, which is deleted first.
    """
    if isinstance(path, BucketPath):
        path.remove(first)
        return
    if first:
        with suppress(OSError):
            (path / first).unlink()
    shutil.rmtree(path, ignore_errors=True)


def _at_once(function: Callable[[Any], Any], items: list[Any]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(function, items):
            pass


def _version(about: Any) -> Version:
    return {name: about[name] for name in ("e_tag", "version") if about[name]}


@contextmanager
def _as_of_a_disk(path: BucketPath) -> Iterator[None]:
    try:
        yield
    except buckets.NotThere as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from error
