"""Seals of small JSON files, and what is found when folders of ours are checked whole."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c

from probex_jax.buckets import Unreachable
from probex_jax.errors import ProbexError

_CRC = "crc32c"


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


def unsealed(about: Any, path: Path) -> Any:
    """What a file holds without its seal, which earlier versions did not write.

    Args:
      about: the JSON of the file.
      path: the file, for the message.

    Returns:
      It without `crc32c`.

    Raises:
      ProbexError: if the seal is wrong.
    """
    if not isinstance(about, dict) or _CRC not in about:
        return about
    if not is_sealed(about):
        raise ProbexError(f"{path}: damaged: its content does not match its checksum")
    return {name: about[name] for name in about if name != _CRC}


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
