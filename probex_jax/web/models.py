"""Uploaded models, and models named by their hub id."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.model_files.byte_ranges import read_small
from probex_jax.model_files.hub import hub_address
from probex_jax.model_files.untrusted_text import json_object

_BESIDE, _INDEX = ".json", ".index.json"
_INDEX_BYTES, _INDEX_VALUES = 2**26, 2**20
# In bytes, of which a file system takes 255.
_LONGEST_NAME = 120
_GONE = "the file has been removed; send it again"
_TWICE = "two files have the name {}; drop one model at a time"
_NO_NAME = re.compile(r"[^\w. +@()\[\]-]+")


@dataclass(frozen=True)
class Model:
    """A model to describe or to search by.

    Args:
      name: as sent.
      path: of the file or folder, or its address on the hub.
      fault: why it cannot be told which files are the model, or "".
    """

    name: str
    path: Path
    fault: str = ""


def plain_name(name: str) -> str:
    """A file name that is safe to show and to write: without folders and odd characters.

    Example:
      >>> plain_name("../a/b<c>.safetensors")
      'b_c_.safetensors'
    """
    last = _NO_NAME.sub("_", name.replace("\\", "/").rpartition("/")[2])
    end = last.strip(". ").encode()[-_LONGEST_NAME:].decode(errors="ignore")
    return end.lstrip(". ") or "model"


def sent(files: Sequence[Path], folder: Path) -> list[Model]:
    """The models in one upload.

    Each file of weights is a model; the shards that an index names are one. Any other JSON file,
    such as `config.json`, belongs to every model.

    Args:
      files: as received.
      folder: an empty folder, for links to the files of models of several.

    Raises:
      ProbexError: if a file is gone, or there are no weights.
    """
    if not files or not all(file.exists() for file in files):
        raise ProbexError(_GONE)
    if all(file.suffix == _BESIDE for file in files):
        raise ProbexError("no safetensors file; drop the weights and the JSON files together")
    indexes = [file for file in files if file.name.endswith(_INDEX)]
    index_of = {shard: index.name for index in indexes for shard in _shards(index)}
    groups: dict[str | Path, list[Path]] = {}
    for file in (*(file for file in files if file.suffix != _BESIDE), *indexes):
        index = file.name if file in indexes else index_of.get(file.name)
        groups.setdefault(index or file, []).append(file)
    beside = [file for file in files if file.suffix == _BESIDE and file not in indexes]
    twice = _twice(beside)
    once = [file for file in beside if file.name not in twice]
    models = [
        _model(group, once, folder / str(number)) for number, group in enumerate(groups.values())
    ]
    return [*models, *(Model(name, folder, _TWICE.format(name)) for name in twice)]


def _shards(index: Path) -> set[str]:
    """The names of the shards in an index; none if it cannot be read."""
    try:
        said = json_object(read_small(index, _INDEX_BYTES), index.name, values=_INDEX_VALUES)
        return {shard for shard in said["weight_map"].values() if isinstance(shard, str)}
    except (ProbexError, KeyError, AttributeError):
        return set()


def _twice(files: Iterable[Path]) -> list[str]:
    return [name for name, count in Counter(file.name for file in files).items() if count > 1]


def _model(group: Sequence[Path], beside: Sequence[Path], place: Path) -> Model:
    """The model of one file of weights, or of shards and their index."""
    name = plain_name(group[0].name).removesuffix(".safetensors")
    if twice := _twice(group):
        return Model(name, place, _TWICE.format(twice[0]))
    if group[0].suffix == _BESIDE:
        return Model(name, place, "none of the shards that it names is among the files")
    if not beside and len(group) == 1:
        return Model(name, group[0])
    try:
        place.mkdir()
        for file in (*group, *beside):
            os.link(file, place / file.name)
    except OSError:  # removed meanwhile
        raise ProbexError(_GONE) from None
    return Model(name, place if len(group) > 1 else place / group[0].name)


def of_hub(address: str, *, allowed: bool) -> Model:
    """A model by its hub id: `org/name`, optionally with a revision and a file.

    Raises:
      ProbexError: if hub models are not allowed here, or the id is invalid.
    """
    if not allowed:
        raise ProbexError("this server does not read models from the hub; send the file")
    try:
        found = hub_address("hf://" + address.strip().removeprefix("hf://"))
    except ProbexError:
        found = None
    if found is None or found.kind != "model":
        raise ProbexError(f"{address!r}: expected a hub id, such as org/name")
    return Model(found.id, Path(str(found)))
