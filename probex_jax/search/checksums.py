"""Checksums of the files of a LanceDB table.

LanceDB has none: a flipped bit silently changes vectors, loses rows, or crashes the process. Its
files never change once written, so a list of their CRC-32C is enough. A bucket has checksums of its
own: there the list is of tags that change with the content, and no file is read for it.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from probex_jax.bucket_paths import BucketPath
from probex_jax.errors import ProbexError
from probex_jax.files import read_json, write_json
from probex_jax.integrity import crc_of, is_sealed, sealed

NAME = "models.sums.json"
_FOLDER = "models.lance"


def check(folder: Path) -> tuple[int, dict[str, int | str]]:
    """Verifies the listed files.

    Unlisted files are of a version that is not listed yet, and is not read (`ModelTable`).

    Args:
      folder: of the database.

    Returns:
      The table version of the list (0 without a list), and file name to checksum.

    Raises:
      ProbexError: if a file is damaged.
    """
    version, sums = read(folder)
    for name, is_whole in each(folder, sums):
        # A missing file belongs to a version that a writer removed; otherwise LanceDB reports it.
        if is_whole is False:
            raise ProbexError(damage(folder / name))
    return version, sums


def each(folder: Path, sums: Mapping[str, int | str]) -> Iterator[tuple[str, bool | None]]:
    """Every listed file with whether it is as it was; None for a missing one."""
    tags = _tags(folder)
    for name, kept in sums.items():
        found = tags.get(name) if isinstance(kept, str) else crc_of(folder / name)
        yield name, None if found is None else found == kept


def damage(path: Path, what: str = "damaged") -> str:
    """The line for a damaged file."""
    return f"{path}: {what}; index again into another folder"


def keep(folder: Path, version: int, known: Mapping[str, int | str]) -> dict[str, int | str]:
    """Writes the list of all files; those with a known checksum are not read again."""
    sums = _tags(folder) or {
        name: known[name] if type(known.get(name)) is int else crc_of(folder / name) or 0
        for name in _names(folder)
    }
    write_json(folder / NAME, sealed({"version": version, "files": sums}))
    return sums


def _names(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder / _FOLDER):
        inside = os.path.relpath(place, folder)
        # The hint about the latest version changes.
        yield from (f"{inside}/{name}" for name in names if not name.endswith(".json"))


def _tags(folder: Path) -> dict[str, int | str]:
    """The tags of the files of a table in a bucket; none on a disk."""
    if not isinstance(folder, BucketPath):
        return {}
    return {
        "/".join(path.parts[len(folder.parts) :]): tag
        for path, tag in (folder / _FOLDER).below()
        if path.suffix != ".json"
    }


def read(folder: Path) -> tuple[int, dict[str, int | str]]:
    """The list: its version of the table (0 without a list), and file name to checksum."""
    path = folder / NAME
    try:
        about = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0, {}
    if not (isinstance(about, dict) and is_sealed(about)):
        raise ProbexError(damage(path))
    return about["version"], about["files"]
