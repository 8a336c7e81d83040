"""Uploaded models, and models named by their hub id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.model_files.hub import hub_address
from probex_jax.model_files.locate import SINGLE

# With such a file, all files of an upload are one model.
_BESIDE = ".json"
# In bytes, of which a file system takes 255.
_LONGEST_NAME = 120
_GONE = "the file has been removed; send it again"
_NO_NAME = re.compile(r"[^\w. +@()\[\]-]+")


@dataclass(frozen=True)
class Model:
    """A model to describe or to search by.

    Args:
      name: as sent.
      path: of the file or folder, or its address on the hub.
    """

    name: str
    path: Path


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

    With a JSON file, all files are one model: its shards and configuration. Otherwise each file is
    a model.

    Args:
      files: as received.
      folder: an empty folder to collect the files of one model.

    Raises:
      ProbexError: if a file is gone, there are no weights, or two files of a model have one name.
    """
    if not files or not all(file.exists() for file in files):
        raise ProbexError(_GONE)
    if not any(file.suffix == _BESIDE for file in files):
        return [Model(plain_name(file.name).removesuffix(".safetensors"), file) for file in files]
    weights = [file for file in files if file.suffix != _BESIDE]
    if not weights:
        raise ProbexError("no safetensors file; drop the weights and the JSON files together")
    if len({file.name for file in files}) < len(files):
        raise ProbexError("two of the files have the same name; drop one model at a time")
    try:
        for file in files:
            file.rename(folder / file.name)
    except OSError:  # the same event came twice
        raise ProbexError(_GONE) from None
    name = plain_name(weights[0].name).removesuffix(".safetensors")
    is_whole = len(weights) == 1 and not (folder / SINGLE).exists()
    return [Model(name, folder / weights[0].name if is_whole else folder)]


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
