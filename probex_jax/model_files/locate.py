"""From a path to the safetensors files that make up a model: file, folder, shards, hub cache."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.model_files.byte_ranges import read_small
from probex_jax.model_files.limits import Limits
from probex_jax.model_files.untrusted_text import json_object, plain_name, quoted, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_INDEX_BYTES = 64 * 1024 * 1024
_MAX_REVISION_BYTES = 1024
_MAX_SHARDS = 500  # each is an open file
_VALUES_BESIDE_TENSORS = 10_000

# What the hub's client calls the folder of a repository in its cache.
_CACHED = ("models--", "datasets--")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DEFAULT = Limits()
_SHARD_OF_MANY = re.compile(r".*-\d+-of-0*(?!1\.)[1-9]\d*\.safetensors")


@dataclass(frozen=True)
class Location:
    """The files of one model.

    Args:
      files: the safetensors files, sorted by name.
      folder: where they and `config.json` lie.
      root: the model's own folder, without links; no link in `folder` may lead out of it. In a hub
        cache it is the `models--…` one, whose `blobs/` hold the files.
      weight_map: tensor name to file name, as the index of shards says; None without an index.
    """

    files: tuple[Path, ...]
    folder: Path
    root: Path
    weight_map: Mapping[str, str] | None = None


def locate(path: Path, limits: Limits = _DEFAULT) -> Location:
    """Finds the files of a model; raises a ProbexError that says what was looked for.

    What the user named is followed, wherever it leads; links that lie in the model's folder are
    followed within `Location.root`.
    """
    if path.is_dir():
        # A folder that holds snapshots is a model's own, whatever it is called.
        return _in_folder(_snapshot(path), _own_folder(path), limits)
    _check_there(path)
    _refuse_other_formats(path)
    return Location((path,), path.parent, _own_folder(path.parent))


def check_inside(path: Path, root: Path, whose: str = "model") -> None:
    """Raises a ProbexError if a path is or goes through a link that leads out of `root`."""
    real = _real(path)
    if not real.is_relative_to(root):
        raise ProbexError(
            f"{shown(path)}: a link that leads out of the {whose}'s folder, to {shown(real)}; "
            "it is not followed"
        )


def read_inside(path: Path, limit: int, whose: str = "model") -> bytes:
    """Reads a small file in a folder of a stranger's, unless it is a link that leads out of it.

    Args:
      path: of the file.
      limit: of its size in bytes.
      whose: folder it is, for the error.

    Raises:
      ProbexError: if it is such a link, is larger or cannot be read.
    """
    check_inside(path, _own_folder(path.parent), whose)
    return read_small(path, limit)


def _own_folder(folder: Path) -> Path:
    """The real folder, or the `models--…` folder that it is a snapshot in."""
    real = _real(folder)
    for above in real.parents:
        if above.name == "snapshots" and above.parent.name.startswith(_CACHED):
            return above.parent
    return real


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve, no error for links in a circle


def _check_there(path: Path) -> None:
    if not path.exists():
        to = f" (a link to {shown(path.readlink())}, which is missing)" if path.is_symlink() else ""
        raise ProbexError(f"{shown(path)}: no such file or folder{to}")


def _refuse_other_formats(path: Path) -> None:
    suffix = path.suffix.lower()
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


def _in_folder(folder: Path, root: Path, limits: Limits) -> Location:
    # A dangling link counts as present: the error then says where it leads.
    if os.path.lexists(folder / SINGLE):
        return Location((_file(folder / SINGLE, root),), folder, root)
    if os.path.lexists(folder / INDEX):
        return _shards(folder / INDEX, root, limits)
    entries = sorted(folder.iterdir())
    others = [entry for entry in entries if entry.suffix == ".safetensors"]
    if len(others) == 1 and not _SHARD_OF_MANY.fullmatch(others[0].name):
        return Location((_file(others[0], root),), folder, root)
    if others:
        names = ", ".join(quoted(entry.name) for entry in others[:3])
        raise ProbexError(
            f"{folder}: neither {SINGLE} nor {INDEX}, and which of its {len(others)} other files "
            f"is the model? {names}{', …' if len(others) > 3 else ''}; shards need the index, "
            "for one of several files give its path"
        )
    for entry in entries:
        if entry.suffix.lower() in (*_PICKLES, ".gguf") and entry.name.isprintable():
            _refuse_other_formats(entry)
    raise ProbexError(f"{folder}: no model here; expected {SINGLE} or {INDEX}")


def _file(path: Path, root: Path) -> Path:
    """A file of weights that was found, not named by the user."""
    if not path.name.isprintable():
        raise ProbexError(f"{shown(path)}: the name of the file has characters that do not print")
    _check_there(path)
    check_inside(path, root)
    if path.is_dir():
        raise ProbexError(f"{path}: is a folder, expected a file")
    _refuse_other_formats(path)
    return path


def _shards(index: Path, root: Path, limits: Limits) -> Location:
    _check_there(index)
    check_inside(index, root)
    values = limits.tensors + _VALUES_BESIDE_TENSORS
    data = read_small(index, _MAX_INDEX_BYTES)
    content = json_object(data, str(index), depth=limits.depth, values=values)
    unknown = [key for key in content if key not in ("metadata", "weight_map")]
    if unknown:
        raise ProbexError(
            f"{index}: unknown field {quoted(unknown[0])}, expected metadata and weight_map"
        )
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ProbexError(f"{index}: weight_map is missing or no object with tensors in it")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ProbexError(f"{index}: tensor {quoted(tensor)}: expected the name of a shard")
    shards = sorted({plain_name(name, f"{index}: shard") for name in weight_map.values()})
    if len(shards) > _MAX_SHARDS:
        raise ProbexError(f"{index}: {len(shards)} shards, the limit is {_MAX_SHARDS}")
    files = tuple(_file(index.parent / name, root) for name in shards)
    return Location(files, index.parent, root, weight_map)
