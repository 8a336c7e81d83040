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
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from probex_jax.buckets import is_address, store_of
from probex_jax.errors import ProbexError

# Requests at a time.
_AT_ONCE = 8
_REASON = 200  # characters of an error message

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
    if not is_address(path):
        return Path(path)
    found = BucketPath(str(path))
    if len(found.parts) < 2 or {".", ".."} & set(str(path).split("/")):
        raise ProbexError(f"{path}: no address of a folder in a bucket, such as s3://BUCKET/FOLDER")
    return found


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
        try:
            return bool(self.head())
        except FileNotFoundError:
            return False

    def is_dir(self, **_: Any) -> bool:
        return next(self.below(), None) is not None

    def is_symlink(self) -> bool:
        return False

    def head(self) -> Any:
        """What the bucket says of an object: size, e_tag, last_modified."""
        import obstore

        with _one_line_errors(self):
            return obstore.head(*store_of(str(self)))

    def stat(self, **_: Any) -> os.stat_result:
        about = self.head()
        time = about["last_modified"].timestamp()
        return os.stat_result((0o100644, 0, 0, 1, 0, 0, about["size"], time, time, time))

    def below(self) -> Iterator[tuple["BucketPath", Any]]:
        """The objects below, at any depth, with what `head` says of each."""
        import obstore

        store, key = store_of(str(self))
        with _one_line_errors(self):
            for page in obstore.list(store, key or None):
                for about in page:
                    yield self / about["path"].removeprefix(key).lstrip("/"), about

    def iterdir(self) -> Iterator["BucketPath"]:
        import obstore

        store, key = store_of(str(self))
        with _one_line_errors(self):
            found = obstore.list_with_delimiter(store, key or None)
        keys = [*found["common_prefixes"], *(about["path"] for about in found["objects"])]
        yield from (self / each.rpartition("/")[2] for each in keys)

    def glob(self, pattern: str, **_: Any) -> Iterator["BucketPath"]:
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def read_bytes(self) -> bytes:
        return self.read_tagged()[1]

    def read_text(self, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode()

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        if mode not in ("r", "rb"):
            os.fspath(self)
        data = io.BytesIO(self.read_bytes())
        return data if "b" in mode else io.TextIOWrapper(data, "utf-8")

    def read_tagged(self) -> tuple[str, bytes]:
        """The object's e_tag, and its content."""
        import obstore

        with _one_line_errors(self):
            found = obstore.get(*store_of(str(self)))
            return found.meta["e_tag"] or "", bytes(found.bytes())

    def write_bytes(self, data: Any) -> int:
        self.write(data)
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode())

    def write(self, data: Any) -> None:
        """Writes the object whole: bytes, or the content of a file of a disk."""
        for guard in list(GUARDS.values()):
            guard(self)
        self.put(data)

    def put(self, data: Any, mode: Any = "overwrite") -> Any:
        """As `write`, whoever may write here; mode and result as of obstore."""
        import obstore

        with _one_line_errors(self):
            return obstore.put(*store_of(str(self)), data, mode=mode)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Folders are not made."""

    touch = rmdir = mkdir

    def unlink(self, missing_ok: bool = False) -> None:
        import obstore

        try:
            with _one_line_errors(self):
                obstore.delete(*store_of(str(self)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self, first: str = "") -> None:
        """Deletes all objects below; before others the one that makes the folder valid."""
        if first:
            (self / first).unlink(missing_ok=True)
        _at_once(lambda path: path.unlink(missing_ok=True), [path for path, _ in self.below()])

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
            import obstore

            place = to.joinpath(*path.parts[len(self.parts) :])
            place.parent.mkdir(parents=True, exist_ok=True)
            with _one_line_errors(path), place.open("wb") as file:
                for piece in obstore.get(*store_of(str(path))):
                    file.write(piece)

        _at_once(fetch, [path for path, _ in self.below()] or [self])


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """A file or folder on the disk: itself, or for as long as this lasts a copy of what is there.

    Raises:
      FileNotFoundError: if there is nothing in the bucket.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with TemporaryDirectory(prefix="probex-jax-") as made:
        path.download(Path(made, path.name))
        yield Path(made, path.name)


def put_and_delete(made: Path, path: Path) -> None:
    """Moves a file of the disk into a bucket."""
    as_path(path).write(made)  # type: ignore[attr-defined]
    made.unlink()


def remove_folder(path: Path, first: str = "") -> None:
    """Deletes a folder and all in it, if it is there; `first` as of `BucketPath.remove`."""
    if isinstance(path, BucketPath):
        path.remove(first)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _at_once(function: Callable[[Any], Any], items: list[Any]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(function, items):
            pass


@contextmanager
def _one_line_errors(path: BucketPath) -> Iterator[None]:
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from None
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, OSError) as error:
        # After what failed the message shows its source, line by line.
        reason = " ".join(str(error).partition("\n\nDebug source:")[0].split())
        raise ProbexError(f"{path}: {reason[:_REASON]}") from error
