"""Checksums of files, seals of small JSON files, and notes of what is damaged."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c

from probex_jax.buckets import Unreachable
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors

_CRC = "crc32c"
_PIECE_BYTES = 2**22


def crc_of(path: Path) -> int | None:
    """The CRC-32C of a file.

    Args:
      path: the file.

    Returns:
      It; None if there is no such file.

    Raises:
      ProbexError: if the file cannot be read.
    """
    crc = 0
    try:
        with disk_errors(path), path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                crc = google_crc32c.extend(crc, piece)
    except ProbexError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return crc


def sealed(about: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its own CRC-32C.

    Args:
      about: the object, sealed or not.

    Returns:
      It, with `crc32c` beside its other fields.

    Example:
      >>> is_sealed(sealed({"a": 1})), is_sealed(sealed({"a": 1}) | {"a": 2})
      (True, False)
    """
    rest = {name: about[name] for name in about if name != _CRC}
    return rest | {_CRC: google_crc32c.value(json.dumps(rest, sort_keys=True).encode())}


def is_sealed(about: dict[str, Any]) -> bool:
    """Whether the CRC-32C of a sealed object is right.

    Args:
      about: the object.

    Returns:
      Whether it is; false for an object without one.
    """
    return sealed(about) == about


def unsealed(about: Any, path: Path | str) -> Any:
    """What a file holds without its seal, which earlier versions did not write.

    Args:
      about: the JSON of the file.
      path: the file, for the message.

    Returns:
      It without `crc32c`.

    Raises:
      ProbexError: if the seal is wrong.
    """
    if not isinstance(about, dict):
        return about
    # The name of the seal may be what is damaged.
    if any(len(name) == len(_CRC) and _differ(name, _CRC) == 1 for name in about):
        about = {_CRC: None, **about}
    if _CRC not in about:
        return about
    if not is_sealed(about):
        raise ProbexError(f"{path}: damaged: its content does not match its checksum")
    return {name: about[name] for name in about if name != _CRC}


def _differ(one: str, other: str) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@contextmanager
def noted(damages: list[str]) -> Iterator[None]:
    """Notes an error and goes on, but for servers that cannot be reached.

    Args:
      damages: the line of the error is added to it.

    Yields:
      None.

    Example:
      >>> found = []
      >>> with noted(found):
      ...     raise ProbexError("index.json: damaged")
      >>> found
      ['index.json: damaged']
    """
    try:
        yield
    except Unreachable:  # what it holds may be whole
        raise
    except ProbexError as error:
        damages.append(str(error))
