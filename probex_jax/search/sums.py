"""Checksums of the files of a LanceDB table, which has none of its own.

A flipped bit there changes vectors unseen, loses rows, or makes LanceDB end the process. Its files
are written once and never changed, so a list of their CRC-32C tells whether they are whole.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, read_json, write_json

NAME = "models.sums.json"
_FOLDER = "models.lance"
_CRC = "crc32c"
_PIECE_BYTES = 2**22
# A writer removes files of old versions, and then lists what is left.
_TRIES, _PAUSE_S = 20, 0.1


def check(folder: Path) -> tuple[int, dict[str, int]]:
    """Checks the files that are listed.

    What is not listed, a writer is adding now, or added just before it was killed.

    Args:
      folder: of the database.

    Returns:
      The version of the table that was listed last, and the checksums; 0 where none are listed.

    Raises:
      ProbexError: if a file is damaged or missing; the message names it.
    """
    damaged = ""
    for _ in range(_TRIES):
        version, sums = _read(folder)
        damaged = next((name for name, crc in sums.items() if _crc(folder / name) != crc), "")
        if not damaged:
            return version, sums
        if (folder / damaged).exists():
            break
        time.sleep(_PAUSE_S)
    raise ProbexError(f"{folder / damaged}: damaged or missing; index again into another folder")


def keep(folder: Path, version: int, known: Mapping[str, int]) -> dict[str, int]:
    """Lists the files that there are, and returns their checksums; what is known is not read."""
    sums = {
        name: known[name] if name in known else _crc(folder / name) or 0 for name in _names(folder)
    }
    write_json(folder / NAME, sealed({"version": version, "files": sums}))
    return sums


def sealed(about: dict[str, Any]) -> dict[str, Any]:
    """JSON values with the CRC-32C of them all."""
    rest = {name: about[name] for name in about if name != _CRC}
    return rest | {_CRC: google_crc32c.value(json.dumps(rest, sort_keys=True).encode())}


def is_sealed(about: dict[str, Any]) -> bool:
    """Whether they are what was sealed."""
    return sealed(about) == about


def _names(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder / _FOLDER):
        inside = os.path.relpath(place, folder)
        # The hint of the latest version changes.
        yield from (f"{inside}/{name}" for name in names if not name.endswith(".json"))


def _read(folder: Path) -> tuple[int, dict[str, int]]:
    path = folder / NAME
    try:
        about = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0, {}
    if not (isinstance(about, dict) and is_sealed(about)):
        raise ProbexError(f"{path}: damaged; index again into another folder")
    return about["version"], about["files"]


def _crc(path: Path) -> int | None:
    """The CRC-32C of a file; None where there is none."""
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
