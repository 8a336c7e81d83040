"""Folders that belong to one config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.files import one_writer, read_json, write_json
from probex_jax.integrity import sealed, unsealed


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder for these settings, or checks that it belongs to them.

    The folder's `config.json` keeps the settings.

    Args:
      folder: where a job writes its results.
      settings: everything that the results depend on, as nested dicts of JSON values.

    Raises:
      ProbexError: if the folder belongs to other settings, the message names the fields; or if
        another process is writing it.

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
        with one_writer(folder):
            if not path.exists():
                write_json(path, sealed(ours))
                return
    check_same(folder, settings_of(folder), ours)


def settings_of(folder: Path) -> Any:
    """The settings that a folder was claimed for.

    Args:
      folder: of a job.

    Returns:
      What its `config.json` keeps.

    Raises:
      ProbexError: if that is damaged.
      FileNotFoundError: if the folder was not claimed.
    """
    path = folder / "config.json"
    return unsealed(read_json(path), path)


def check_same(folder: Path, theirs: Any, ours: Any) -> None:
    """Checks that the settings found in a folder are the ones given.

    Args:
      folder: what the message names.
      theirs, ours: nested dicts of JSON values.

    Raises:
      ProbexError: if they differ; the message names the fields.
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
