"""Small files and folders that a kill cannot leave half-written or mixed up."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all.

    Args:
      path: the file; its folder must exist.
      value: what JSON can hold.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder that belongs to these settings, or checks that it does already.

    The settings are kept in the folder's `config.json`.

    Args:
      folder: where a job writes its results.
      settings: all that they depend on, as nested dicts of JSON values.

    Raises:
      ProbexError: if the folder belongs to other settings; the message says which fields differ.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> claim(folder, {"recipe": {"epochs": 500}})
      >>> claim(folder, {"recipe": {"epochs": 200}})
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: ...: belongs to another config: recipe.epochs is 500 there,
      200 here; give the same config or choose another folder
    """
    path = folder / "config.json"
    ours = json.loads(json.dumps(settings))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, ours)
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise ProbexError(f"{path}: not JSON: {error}; choose another folder") from error
    check_same(folder, theirs, ours)


def check_same(folder: Path, theirs: Any, ours: Any) -> None:
    """Checks that the settings found in a folder are the ones given.

    Raises:
      ProbexError: if they are not; the message says which fields differ.
    """
    old, new = _flat(theirs), _flat(ours)
    different = [
        f"{name} is {old.get(name, 'absent')} there, {new.get(name, 'absent')} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if different:
        raise ProbexError(
            f"{folder}: belongs to another config: {'; '.join(different)}; give the same config "
            "or choose another folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        return {prefix: json.dumps(value)}
    return {
        name: text
        for key, item in value.items()
        for name, text in _flat(item, f"{prefix}.{key}" if prefix else key).items()
    }
