"""The columns of a stranger's table of models: what of them a file of labels may say."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.files import write_json
from probex_jax.model_files.untrusted_text import (
    is_text,
    json_list,
    literal_strings,
)
from probex_jax.zoo.cells import is_missing, number_in, numbers_of
from probex_jax.zoo.label_files import read_table

# Column to model to what it says: a text, a number, a truth value, or a list of these.
Columns = Mapping[str, Mapping[str, Any]]

_FILE = "labels.json"
_MODEL = "model"


def columns_of(rows: Mapping[str, Mapping[Any, Any]], names: Collection[str] = ()) -> Columns:
    """The columns of a table that files of labels can hold.

    Values that these cannot hold are left out, as unknown: dates, nested ones, texts that are no
    names, lists in which something stands twice; and words between numbers.

    Args:
      rows: model to column to value.
      names: columns that are left out; so is one called "model", which files of labels need.

    Returns:
      Column to model to value.

    Example:
      >>> columns_of({"a": {"lr": "1e-4", "tags": "['x', 'y']"}, "b": {"lr": "?", "tags": "[]"}})
      {'lr': {'a': '1e-4'}, 'tags': {'a': ['x', 'y'], 'b': []}}
    """
    columns: dict[str, dict[str, Any]] = {}
    for model, row in rows.items():
        for name, value in row.items():
            if is_text(name) and name.strip() and name not in (*names, _MODEL):
                known = _value(value)
                if known is not None:
                    columns.setdefault(name, {})[model] = known
    return {name: _without_mistakes(name, column) for name, column in columns.items()}


def _value(value: Any) -> Any:
    """A value as files of labels have it; None if it is unknown."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with suppress(ProbexError):  # a text in brackets
            value = literal_strings(value, "")
    if isinstance(value, list):
        items = [_value(item) for item in value]
        single = all(item is not None and not isinstance(item, list) for item in items)
        return items if single and len({str(item) for item in items}) == len(items) else None
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value.strip() if is_text(value) else None
    known = isinstance(value, int) or (isinstance(value, float) and isfinite(value))
    return value if known else None


def _without_mistakes(name: str, column: Mapping[str, Any]) -> Mapping[str, Any]:
    """A column of numbers without the words, and numbers in other spellings, between these."""
    try:
        numbers_of({model: ("", value) for model, value in column.items()}, name)
        return column
    except ProbexError:
        return {model: value for model, value in column.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    text = value if isinstance(value, str) else json.dumps(value)
    return number_in(text) is not None and not {",", "%"} & set(text)


def read_columns(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the `labels.json` of a folder, by model; none without one.

    Raises:
      ProbexError: if it is none that `write_columns` may add to.
    """
    path = folder / _FILE
    if not path.exists():
        return {}
    where = str(path)
    rows = json_list(read_table(path), where)
    if not all(isinstance(row, dict) and is_text(row.get(_MODEL)) for row in rows):
        raise ProbexError(
            f"{where}: a row is not an object, or names no {_MODEL!r}; move the file away"
        )
    return {row[_MODEL]: row for row in rows}


def write_columns(folder: Path, columns: Columns, models: Collection[str]) -> None:
    """Writes columns to the `labels.json` of a folder, whole or not at all.

    What it says of other models, and of these in other columns, stays.

    Args:
      folder: of a zoo.
      columns: what there is to say.
      models: those of which it is said.

    Raises:
      ProbexError: as `read_columns`, or if it cannot be written.
    """
    rows = read_columns(folder)
    for model in models:
        own = {name: column[model] for name, column in columns.items() if model in column}
        if own:
            rows[model] = {**rows.get(model, {}), _MODEL: model, **own}
    if rows:
        write_json(folder / _FILE, [rows[model] for model in sorted(rows)])
