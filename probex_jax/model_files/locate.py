"""From a path to the safetensors files that make up a model: file, folder, shards, hub cache."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.model_files.byte_ranges import read_small
from probex_jax.model_files.untrusted_text import json_object, plain_name, quoted

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_INDEX_BYTES = 64 * 1024 * 1024
_MAX_REVISION_BYTES = 1024
_MAX_SHARDS = 500  # each is an open file

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SHARD_OF_MANY = re.compile(r".*-\d+-of-0*(?!1\.)[1-9]\d*\.safetensors")


@dataclass(frozen=True)
class Location:
    """The files of one model.

    Args:
      files: the safetensors files, sorted by name.
      folder: where they and `config.json` lie.
      weight_map: tensor name to file name, as the index of shards says; None without an index.
    """

    files: tuple[Path, ...]
    folder: Path
    weight_map: Mapping[str, str] | None = None


def locate(path: Path) -> Location:
    """Finds the files of a model; raises a ProbexError that says what was looked for."""
    if path.is_dir():
        return _in_folder(_snapshot(path))
    if not path.exists():
        link = f" (a link to {path.readlink()}, which is missing)" if path.is_symlink() else ""
        raise ProbexError(f"{path}: no such file or folder{link}")
    _refuse_other_formats(path)
    return Location((path,), path.parent)


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
    text = read_small(reference, _MAX_REVISION_BYTES).decode("utf-8", "replace").strip()
    snapshot = folder / "snapshots" / plain_name(text, f"{reference}: revision")
    if not snapshot.is_dir():
        raise ProbexError(f"{snapshot}: no such folder, though refs/main names this revision")
    return snapshot


def _in_folder(folder: Path) -> Location:
    # A dangling link counts as present: the error then says where it leads.
    for name, found in ((SINGLE, _single), (INDEX, _shards)):
        if (folder / name).exists() or (folder / name).is_symlink():
            return found(folder / name)
    entries = sorted(folder.iterdir())
    others = [entry for entry in entries if entry.suffix == ".safetensors"]
    if len(others) == 1 and not _SHARD_OF_MANY.fullmatch(others[0].name):
        return _single(others[0])
    if others:
        names = ", ".join(quoted(entry.name) for entry in others[:3])
        raise ProbexError(
            f"{folder}: neither {SINGLE} nor {INDEX}, and which of its {len(others)} other files "
            f"is the model? {names}{', …' if len(others) > 3 else ''}; shards need the index, "
            "for one of several files give its path"
        )
    for entry in entries:
        if entry.suffix.lower() in (*_PICKLES, ".gguf"):
            _refuse_other_formats(entry)
    raise ProbexError(f"{folder}: no model here; expected {SINGLE} or {INDEX}")


def _single(path: Path) -> Location:
    return locate(path) if not path.is_dir() else _not_a_file(path)


def _not_a_file(path: Path) -> Location:
    raise ProbexError(f"{path}: is a folder, expected a file")


def _shards(index: Path) -> Location:
    content = json_object(read_small(index, _MAX_INDEX_BYTES), str(index))
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
    files = tuple(_single(index.parent / name).files[0] for name in shards)
    return Location(files, index.parent, weight_map)
