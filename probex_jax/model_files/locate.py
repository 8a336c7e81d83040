"""Finds the safetensors files of a model at a path: a file, a folder, shards, a hub cache."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from probex_jax.buckets import address_of, is_address, read
from probex_jax.errors import ProbexError
from probex_jax.model_files.byte_ranges import ByteRanges, read_small
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.untrusted_text import json_object, plain_name, quoted, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_INDEX_BYTES = 64 * 1024 * 1024
_MAX_REVISION_BYTES = 1024
_MAX_SHARDS = 500  # each is an open file
_VALUES_BESIDE_TENSORS = 10_000

# How the names of repositories' folders begin in the hub client's cache.
_CACHED = ("models--", "datasets--")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DEFAULT = Limits()
_SHARD_OF_MANY = re.compile(r".*-\d+-of-0*(?!1\.)[1-9]\d*\.safetensors")


class Bytes(Protocol):
    """A file that is open for reading byte ranges."""

    name: str
    size: int

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes `begin:end` as a new array of uint8."""

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Announces ranges that will be read, so that few requests fetch them from a server."""

    def forget(self) -> None:
        """Announces that what was fetched has been read."""

    def check_unchanged(self) -> None:
        """Raises a ProbexError if the file was written to since it was opened."""

    def close(self) -> None:
        """Closes the file."""


class Folder(Protocol):
    """The folder of a model's files, on this machine or on a server."""

    def path_of(self, name: str) -> str:
        """The path of a file in it, for messages."""

    def names(self) -> list[str]:
        """The names of its files, as far as known."""

    def open(self, name: str) -> Bytes:
        """Opens a file in it, named as `names` does."""

    def read_beside(self, name: str, limit: int) -> bytes | None:
        """A small file in it, or None if there is none."""


@dataclass(frozen=True)
class Location:
    """The files of one model.

    Args:
      folder: with the files and `config.json`.
      names: of the safetensors files, sorted.
      weight_map: tensor name to file name, from the index of shards; None without an index.
    """

    folder: Folder
    names: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None


class LocalFolder:
    """A folder on this machine.

    Args:
      path: of the folder.
      root: the model's own folder, a real path; links in it must not lead out of it. In a hub
        cache, the `models--…` folder, whose `blobs/` holds the files.
      named: the file that the user named, if any: it may be a link to anywhere.
    """

    def __init__(self, path: Path, root: Path, named: str = ""):
        self.path, self._root, self._named = path, root, named

    def __str__(self) -> str:
        return str(self.path)

    def path_of(self, name: str) -> str:
        """The path of a file in it, for messages."""
        return str(self.path / name)

    def names(self) -> list[str]:
        """All names in it, sorted; with dangling links, whose error tells where they lead."""
        return sorted(os.listdir(self.path))

    def open(self, name: str) -> ByteRanges:
        """Opens a file of weights."""
        path = self.path / name
        return ByteRanges(path if name == self._named else _file(path, self._root))

    def read_beside(self, name: str, limit: int) -> bytes | None:
        """A small file in it, or None if there is none."""
        path = self.path / name
        if not os.path.lexists(path):
            return None
        _check_there(path)
        check_inside(path, self._root)
        return read_small(path, limit)


def locate(path: Path, limits: Limits = _DEFAULT) -> Location:
    """Finds the files of a model; raises a ProbexError that says what was expected.

    A link that the user named is followed wherever it leads; links inside the model's folder are
    followed only within its root.
    """
    if path.is_dir():
        # A folder with snapshots is a model's own, whatever its name.
        return located_in(LocalFolder(_snapshot(path), _own_folder(path)), limits)
    _check_there(path)
    refuse_other_formats(path.name, str(path))
    return Location(LocalFolder(path.parent, _own_folder(path.parent), path.name), (path.name,))


def local_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of the model at a path on this machine; errors as `locate`."""
    location = locate(path)
    return tuple(Path(location.folder.path_of(name)) for name in location.names)


def located_in(folder: Folder, limits: Limits) -> Location:
    """Finds the files of the model in a folder."""
    names = folder.names()
    if SINGLE in names:
        return Location(folder, (SINGLE,))
    if INDEX in names:
        return _shards(folder, limits)
    others = [name for name in names if Path(name).suffix == ".safetensors"]
    if len(others) == 1 and not _SHARD_OF_MANY.fullmatch(others[0]):
        return Location(folder, (others[0],))
    if others:
        some = ", ".join(map(quoted, others[:3]))
        raise ProbexError(
            f"{folder}: neither {SINGLE} nor {INDEX}, and which of its {len(others)} other files "
            f"is the model? {some}{', …' if len(others) > 3 else ''}; shards need the index, "
            "for one of several files give its path"
        )
    for name in names:
        if Path(name).suffix.lower() in (*_PICKLES, ".gguf") and name.isprintable():
            refuse_other_formats(name, folder.path_of(name))
    raise ProbexError(f"{folder}: no model here; expected {SINGLE} or {INDEX}")


def check_inside(path: Path, root: Path, whose: str = "model") -> None:
    """Raises a ProbexError if a path leads out of `root` through a link."""
    real = _real(path)
    if not real.is_relative_to(root):
        raise ProbexError(
            f"{shown(path)}: a link that leads out of the {whose}'s folder, to {shown(real)}; "
            "it is not followed"
        )


def read_inside(path: Path, limit: int, whose: str = "model") -> bytes:
    """Reads a small file in a stranger's folder or bucket, unless a link leads out of the folder.

    Args:
      path: of the file.
      limit: of its size in bytes.
      whose: what the folder belongs to, for the error.

    Raises:
      ProbexError: if it is such a link, is larger or cannot be read.
    """
    if is_address(path):
        return read(address_of(path), limit).data
    check_inside(path, _own_folder(path.parent), whose)
    return read_small(path, limit)


def _own_folder(folder: Path) -> Path:
    """The real folder, or the `models--…` folder of which it is a snapshot."""
    real = _real(folder)
    for above in real.parents if "snapshots" in real.parts else ():
        if above.name == "snapshots" and above.parent.name.startswith(_CACHED):
            return above.parent
    return real


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve, no error for circular links


def _check_there(path: Path) -> None:
    if not path.exists():
        to = f" (a link to {shown(path.readlink())}, which is missing)" if path.is_symlink() else ""
        raise ProbexError(f"{shown(path)}: no such file or folder{to}")


def refuse_other_formats(name: str, path: str) -> None:
    """Raises a ProbexError with a way out unless the file name ends in .safetensors."""
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLES:
        raise ProbexError(
            f"{path}: a pickle can run code when it is loaded, so it is not read; convert it where "
            "you trust it: load it with transformers or diffusers and call "
            "save_pretrained(folder, safe_serialization=True)"
        )
    if suffix == ".gguf":
        raise ProbexError(
            f"{path}: GGUF is not read; convert it: load it with transformers "
            "(from_pretrained(folder, gguf_file=...)) and call "
            "save_pretrained(folder, safe_serialization=True)"
        )
    if suffix != ".safetensors":
        raise ProbexError(f"{path}: expected a .safetensors file or a folder")


def _snapshot(folder: Path) -> Path:
    """The folder itself, or the snapshot that a hub cache folder's `refs/main` names."""
    if not (folder / "snapshots").is_dir():
        return folder
    reference = folder / "refs" / "main"
    if not reference.exists():
        raise ProbexError(f"{reference}: missing; expected the revision of a hub cache folder")
    check_inside(reference, _real(folder))
    text = read_small(reference, _MAX_REVISION_BYTES).decode("utf-8", "replace").strip()
    snapshot = folder / "snapshots" / plain_name(text, f"{reference}: revision")
    if not snapshot.is_dir():
        raise ProbexError(f"{snapshot}: no such folder, though refs/main names this revision")
    check_inside(snapshot, _real(folder))
    return snapshot


def _file(path: Path, root: Path) -> Path:
    """Checks a weight file that the user did not name."""
    if not path.name.isprintable():
        raise ProbexError(f"{shown(path)}: the file name has unprintable characters")
    _check_there(path)
    check_inside(path, root)
    if path.is_dir():
        raise ProbexError(f"{path}: is a folder, expected a file")
    refuse_other_formats(path.name, str(path))
    return path


def _shards(folder: Folder, limits: Limits) -> Location:
    index, values = folder.path_of(INDEX), limits.tensors + _VALUES_BESIDE_TENSORS
    data = folder.read_beside(INDEX, _MAX_INDEX_BYTES) or b""
    content = json_object(data, index, depth=limits.depth, values=values)
    unknown = [key for key in content if key not in ("metadata", "weight_map")]
    if unknown:
        raise ProbexError(
            f"{index}: unknown field {quoted(unknown[0])}, expected metadata and weight_map"
        )
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ProbexError(f"{index}: weight_map is missing, empty or no object")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ProbexError(f"{index}: tensor {quoted(tensor)}: expected the name of a shard")
    shards = sorted({plain_name(name, f"{index}: shard") for name in weight_map.values()})
    if len(shards) > _MAX_SHARDS:
        raise ProbexError(f"{index}: {len(shards)} shards, the limit is {_MAX_SHARDS}")
    for name in shards:
        refuse_other_formats(name, folder.path_of(name))
    return Location(folder, tuple(shards), weight_map)
