"""The models that somebody sent, or named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probex_jax.errors import ProbexError
from probex_jax.model_files.hub import hub_address
from probex_jax.model_files.locate import SINGLE

# What makes the files that came with it one model.
_BESIDE = ".json"
# In bytes, of which a file system takes 255.
_LONGEST_NAME = 120
_GONE = "the file is not here any more; send it again"
_NO_NAME = re.compile(r"[^\w. +@()\[\]-]+")


@dataclass(frozen=True)
class Model:
    """A model that somebody sent.

    Args:
      name: as the sender calls it.
      path: where it lies, or its address on the hub.
    """

    name: str
    path: Path


def plain_name(name: str) -> str:
    """A file's name as it may be shown and written: no folders, nothing that is not printed.

    Example:
      >>> plain_name("../a/b<c>.safetensors")
      'b_c_.safetensors'
    """
    last = _NO_NAME.sub("_", name.replace("\\", "/").rpartition("/")[2])
    end = last.strip(". ").encode()[-_LONGEST_NAME:].decode(errors="ignore")
    return end.lstrip(". ") or "model"


def sent(files: Sequence[Path], folder: Path) -> list[Model]:
    """The models that files are which came together.

    With a JSON file among them they are one model, its shards and configuration; else each is one.

    Args:
      files: as they were received.
      folder: an empty one, where the files of one model are put together.

    Raises:
      ProbexError: if one is gone, there are no weights, or two of one model have the same name.
    """
    if not files or not all(file.exists() for file in files):
        raise ProbexError(_GONE)
    if not any(file.suffix == _BESIDE for file in files):
        return [Model(plain_name(file.name).removesuffix(".safetensors"), file) for file in files]
    weights = [file for file in files if file.suffix != _BESIDE]
    if not weights:
        raise ProbexError("no safetensors file among them; drop the weights and the JSON together")
    if len({file.name for file in files}) < len(files):
        raise ProbexError("two of the files have the same name; drop one model at a time")
    try:
        for file in files:
            file.rename(folder / file.name)
    except OSError:  # somebody sent the same event twice
        raise ProbexError(_GONE) from None
    name = plain_name(weights[0].name).removesuffix(".safetensors")
    is_whole = len(weights) == 1 and not (folder / SINGLE).exists()
    return [Model(name, folder / weights[0].name if is_whole else folder)]


def of_hub(address: str, *, allowed: bool) -> Model:
    """A model by its hub id: `org/name`, with a revision and a file if need be.

    Raises:
      ProbexError: if that is not allowed here, or the address is no model's on the hub.
    """
    if not allowed:
        raise ProbexError("this server reads no models of the hub; send the file")
    try:
        found = hub_address("hf://" + address.strip().removeprefix("hf://"))
    except ProbexError:
        found = None
    if found is None or found.kind != "model":
        raise ProbexError(f"{address!r}: expected a model of the hub, as org/name")
    return Model(found.id, Path(str(found)))
