"""Small files and folders that a kill cannot leave half-written or mixed up."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from probex_jax.errors import ProbexError

# What file systems say that know no locks.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all.

    Args:
      path: the file; its folder must exist.
      value: what JSON can hold.

    Raises:
      ProbexError: if the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Args:
      path: the file; its folder must exist.
      text: its content.

    Raises:
      ProbexError: if the file cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Args:
      path: the file; its folder must exist.
      data: its content.

    Raises:
      ProbexError: if the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says of a file into one line that names it.

    Args:
      path: the file, where the system does not name one itself.

    Yields:
      Nothing: what is to be done with the file stands in the `with` block.

    Raises:
      ProbexError: for every OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise ProbexError(f"{error.filename or path}: {error.strerror or error}") from error


@contextmanager
def alone(path: Path, *, wait: bool = True, needed: bool = True) -> Iterator[bool]:
    """Holds a lock among processes, which the system takes back when the process ends.

    Args:
      path: a file, made where there is none; its folder must exist. All processes must see it on a
        file system whose `flock` is heard on all hosts.
      wait: whether to wait for whoever holds it.
      needed: whether there are other processes; if not, a file system without locks will do.

    Yields:
      Whether this process holds it now; always true if it waited.

    Raises:
      ProbexError: if the file cannot be made, or there can be no locks there.
    """
    with disk_errors(path):
        file = path.open("w")
    with file:
        try:
            with disk_errors(path):
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ProbexError as error:
            cause = error.__cause__
            if isinstance(cause, BlockingIOError):
                yield False
                return
            if needed or not (isinstance(cause, OSError) and cause.errno in _NO_LOCKS):
                raise
        yield True


def layer_folder(root: Path, layer: str) -> Path:
    """The folder for what belongs to a layer, whatever the layer is called.

    Names of layers are text of strangers: quoted, none leads out of `root`.

    Args:
      root: folder of all layers.
      layer: name of the layer.

    Returns:
      A folder in `root`, which may not be there yet.

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


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder that belongs to these settings, or checks that it does already.

    The settings are kept in the folder's `config.json`.

    Args:
      folder: where a job writes its results.
      settings: all that they depend on, as nested dicts of JSON values.

    Raises:
      ProbexError: if the folder belongs to other settings; the message says which fields differ.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> claim(folder, {"recipe": {"epochs": 500}})
      >>> claim(folder, {"recipe": {"epochs": 200}})
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: ...: belongs to another config: recipe.epochs is 500 there,
      200 here; give the same config or choose another folder
    """
    path = folder / "config.json"
    ours = json.loads(json.dumps(settings))
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with alone(folder / ".lock", needed=False):  # several processes may begin at once
            if not path.exists():
                write_json(path, ours)
                return
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise ProbexError(f"{path}: not JSON: {error}; choose another folder") from error
    check_same(folder, theirs, ours)


def check_same(folder: Path, theirs: Any, ours: Any) -> None:
    """Checks that the settings found in a folder are the ones given.

    Args:
      folder: for the message.
      theirs, ours: nested dicts of JSON values.

    Raises:
      ProbexError: if they are not; the message says which fields differ.
    """
    old, new = _flat(theirs), _flat(ours)
    different = [
        f"{name} is {old.get(name, 'absent')} there, {new.get(name, 'absent')} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if different:
        raise ProbexError(
            f"{folder}: belongs to another config: {'; '.join(different)}; give the same config "
            "or choose another folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        return {prefix: json.dumps(value)}
    return {
        name: text
        for key, item in value.items()
        for name, text in _flat(item, f"{prefix}.{key}" if prefix else key).items()
    }
