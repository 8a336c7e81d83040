"""Checksums of the files of a LanceDB table, which has none of its own.

A flipped bit there changes vectors unseen, loses rows, or makes LanceDB end the process. Its files
are written once and never changed, so a list of their CRC-32C tells whether they are whole.
"""

import json
import os
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


def check(folder: Path) -> tuple[int, dict[str, int]]:
    """Checks the files that are listed.

    What is not listed, a writer is adding now, or added just before it was killed.

    Args:
      folder: of the database.

    Returns:
      The version of the table that was listed last, and the checksums; 0 where none are listed.

    Raises:
      ProbexError: if a file is damaged; the message names it.
    """
    version, sums = _read(folder)
    for name, crc in sums.items():
        # A file that is gone is of an old version, which a writer removed; or LanceDB misses it.
        if _crc(folder / name) not in (crc, None):
            raise ProbexError(f"{folder / name}: damaged; index again into another folder")
    return version, sums


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
