"""Finds the files of a model at a path: a file, a folder, shards, a checkpoint, a hub cache."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from probex_jax.buckets import address_of, is_address, read
from probex_jax.errors import ProbexError
from probex_jax.model_files.byte_ranges import ByteRanges, read_small
from probex_jax.model_files.checkpoint_folders import checkpoint_in, walked
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.untrusted_text import json_object, plain_name, quoted

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What is read, in the order of preference; of each, how files are called that are the model where
# there are others, too.
FORMATS: Mapping[str, tuple[str, ...]] = {
    ".safetensors": (
        "model",
        "diffusion_pytorch_model",
        "pytorch_lora_weights",
        "adapter_model",
        "adapters",
    ),
    ".sft": (),  # safetensors, too
    ".msgpack": ("flax_model", "diffusion_flax_model"),
    ".gguf": (),
    ".npz": (),
    ".keras": (),
    ".h5": ("model.weights", "tf_model"),
    ".hdf5": (),
}

_MAX_INDEX_BYTES = 64 * 1024 * 1024
_MAX_REVISION_BYTES = 1024
_MAX_SHARDS = 500  # each is an open file
_VALUES_BESIDE_TENSORS = 10_000

# How the names of repositories' folders begin in the hub client's cache.
_CACHED = ("models--", "datasets--")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DEFAULT = Limits()
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<end>\.\w+)")
_MODEL = r"\g<stem> \g<count> \g<end>"  # what the names of a model's shards have in common
# Flax's own checkpoints, before Orbax: msgpack files.
_FLAX = re.compile(r"checkpoint_(\d{1,15})")


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
      names: of the files, sorted.
      weight_map: tensor name to file name, from the index of shards; None without an index.
      checkpoint: the folder of Orbax's arrays, if the model is one.
    """

    folder: Folder
    names: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None
    checkpoint: Path | None = None

    def warnings(self, found: Collection[str]) -> tuple[str, ...]:
        """What the index of shards says that the shards do not."""
        absent = [name for name in self.weight_map or () if name not in found]
        if not absent:
            return ()
        count = f"{len(absent)} tensor{'s' if len(absent) > 1 else ''}"
        return (f"{self.folder}: no shard has {count} of the index, such as {quoted(absent[0])}",)


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

    def all_files(self, inside: Path) -> Iterator[Path]:
        """The files of a folder in it, at any depth, unless a link leads out of the model's own."""
        for path in walked(inside):
            check_inside(path, self._root)
            if not path.is_dir():
                yield path

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
    folder = LocalFolder(path.parent, _own_folder(path.parent), path.name)
    return Location(folder, with_its_shards(path.name, str(path)))


def with_its_shards(name: str, path: str) -> tuple[str, ...]:
    """The file that the user named; with a shard of GGUF, which has no index, the others."""
    found = _SHARD.fullmatch(name)
    if not found or format_of(name) != ".gguf":
        return (name,)
    stem, number, count, end = found.groups()
    if not 0 < int(number) <= int(count) <= _MAX_SHARDS:
        raise ProbexError(f"{path}: shard {number} of {count}; expected 1 to {_MAX_SHARDS}")
    shards = (f"{n:0{len(number)}}" for n in range(1, int(count) + 1))
    return tuple(f"{stem}-{shard}-of-{count}{end}" for shard in shards)


def local_files(path: Path) -> tuple[Path, ...]:
    """The files of the weights of the model at a path on this machine; errors as `locate`."""
    location = locate(path)
    return tuple(Path(location.folder.path_of(name)) for name in location.names)


def format_of(name: str) -> str:
    """The format of a file, as one of `FORMATS`; "" for others."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in FORMATS else ".msgpack" if _FLAX.fullmatch(name) else ""


def located_in(folder: Folder, limits: Limits) -> Location:
    """Finds the files of the model in a folder."""
    names = folder.names()
    for suffix, stems in FORMATS.items():
        for stem in stems:
            if found := _preferred(folder, names, stem, suffix, limits):
                return found
        others = [
            name for name in names if format_of(name) == suffix and _may_be_file(folder, name)
        ]
        if others:
            return _only(folder, others)
    if isinstance(folder, LocalFolder) and (item := checkpoint_in(folder.path)):
        files = sorted(os.path.relpath(file, folder.path) for file in folder.all_files(item))
        return Location(folder, tuple(files), None, item)
    for name in names:
        if Path(name).suffix.lower() in _PICKLES and name.isprintable():
            refuse_other_formats(name, folder.path_of(name))
    raise ProbexError(f"{folder}: no model here; expected {SINGLE} or {INDEX}")


def _may_be_file(folder: Folder, name: str) -> bool:
    return not (isinstance(folder, LocalFolder) and (folder.path / name).is_dir())


def _preferred(
    folder: Folder, names: Sequence[str], stem: str, suffix: str, limits: Limits
) -> Location | None:
    """The file or shards with a usual name; those of a variant, such as `fp16`, if there is one."""
    file, variant = f"{stem}{suffix}", rf"{re.escape(stem)}\.[\w-]+{re.escape(suffix)}"
    index = rf"{re.escape(file)}\.index\.[\w-]+\.json|{variant}\.index\.json"
    for pattern in (re.escape(file), rf"{re.escape(file)}\.index\.json", variant, index):
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found and pattern == variant and len(found) > 1:
            raise _ambiguous(folder, found)
        if found:
            is_index = found[0].endswith(".json")
            return _shards(folder, found[0], limits) if is_index else Location(folder, (found[0],))
    return None


def _only(folder: Folder, names: Sequence[str]) -> Location:
    """One file, the newest of Flax's checkpoints, or all shards."""
    shards = [name for name in names if _SHARD.fullmatch(name)]
    steps = {int(found[1]): name for name in names if (found := _FLAX.fullmatch(name))}
    if shards:
        whole = _complete(folder, shards[0], shards)
        if len(whole) < len(shards):
            raise _ambiguous(folder, shards)
        return Location(folder, whole)
    if len(names) > 1 and len(steps) < len(names):
        raise _ambiguous(folder, names)
    return Location(folder, (steps[max(steps)] if steps else names[0],))


def _complete(folder: Folder, one: str, names: Iterable[str]) -> tuple[str, ...]:
    """All shards of the model that one of them is of, as their names count them."""
    shards = (found for name in names if (found := _SHARD.fullmatch(name)))
    model = _SHARD.sub(_MODEL, one)
    there = {int(found["number"]): found[0] for found in shards if found.expand(_MODEL) == model}
    count = int(_SHARD.sub(r"\g<count>", one))
    if not 0 < count <= _MAX_SHARDS:
        raise ProbexError(f"{folder}: {count} shards, the limit is {_MAX_SHARDS}")
    if absent := [number for number in range(1, count + 1) if number not in there]:
        raise ProbexError(f"{folder}: shard {absent[0]} of {count} is missing beside {quoted(one)}")
    return tuple(there[number] for number in range(1, count + 1))


def _ambiguous(folder: Folder, names: Sequence[str]) -> ProbexError:
    some = ", ".join(map(quoted, names[:3]))
    return ProbexError(
        f"{folder}: neither {SINGLE} nor {INDEX}, and which of its {len(names)} other files "
        f"is the model? {some}{', …' if len(names) > 3 else ''}; for one of several files give "
        "its path"
    )


def check_inside(path: Path, root: Path, whose: str = "model") -> None:
    """Raises a ProbexError if a path leads out of `root` through a link."""
    real = _real(path)
    if not real.is_relative_to(root):
        raise ProbexError(
            f"{path}: a link that leads out of the {whose}'s folder, to {real}; it is not followed"
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
        to = f" (a link to {path.readlink()}, which is missing)" if path.is_symlink() else ""
        raise ProbexError(f"{path}: no such file or folder{to}")


def refuse_other_formats(name: str, path: str) -> None:
    """Raises a ProbexError with a way out unless the file is of a format that is read."""
    if Path(name).suffix.lower() in _PICKLES:
        raise ProbexError(
            f"{path}: a pickle can run code when it is loaded, so it is not read; convert it where "
            "you trust it: load it with transformers or diffusers and call "
            "save_pretrained(folder, safe_serialization=True)"
        )
    if not format_of(name):
        _, *others = FORMATS
        raise ProbexError(
            f"{path}: expected a .safetensors file, one of {', '.join(others)}, or a folder"
        )


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
        raise ProbexError(f"{path}: the file name has unprintable characters")
    _check_there(path)
    check_inside(path, root)
    if path.is_dir():
        raise ProbexError(f"{path}: is a folder, expected a file")
    refuse_other_formats(path.name, str(path))
    return path


def _shards(folder: Folder, name: str, limits: Limits) -> Location:
    index, values = folder.path_of(name), limits.tensors + _VALUES_BESIDE_TENSORS
    data = folder.read_beside(name, _MAX_INDEX_BYTES) or b""
    weight_map = json_object(data, index, depth=limits.depth, values=values).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ProbexError(f"{index}: weight_map is missing, empty or no object")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ProbexError(f"{index}: tensor {quoted(tensor)}: expected the name of a shard")
    shards = sorted({plain_name(name, f"{index}: shard") for name in weight_map.values()})
    if len(shards) > _MAX_SHARDS:
        raise ProbexError(f"{index}: {len(shards)} shards, the limit is {_MAX_SHARDS}")
    for shard in shards:
        refuse_other_formats(shard, folder.path_of(shard))
    return Location(folder, tuple(shards), weight_map)
