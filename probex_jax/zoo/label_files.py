"""Files of labels as people have them: CSV, JSON or JSON lines, several columns at once."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files.locate import read_inside
from probex_jax.model_files.untrusted_text import (
    MAX_VALUES,
    is_text,
    json_list,
    json_object,
    quoted,
    shown,
)

MAX_TABLE_BYTES = 256 * 2**20
# Between several classes in a cell of CSV; a cell of `[]` says that a model has none of them.
SEPARATOR = ";"
NONE_OF_THESE = "[]"

_BOM = b"\xef\xbb\xbf"
# What the column that names the models may be called; else it is the first of CSV.
_MODEL = ("model", "id", "name", "file")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Labels:
    """What files say of the classes of models.

    Args:
      columns: label column to model to its classes, () for none of them; models whose label is
        unknown are not there. In the column "", of files that name no column, the classes are
        unchecked JSON.
      numbers: column of numbers to model to its number, those that are unknown left out, too.
    """

    columns: Mapping[str, Mapping[str, Any]]
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


# A row: where it stands, the model, and column to value.
_Row = tuple[str, str, Mapping[str, Any]]


def read_labels(path: Path) -> Labels:
    """Reads a file of labels; by its suffix, CSV, JSON lines or JSON.

    Args:
      path: the file. In CSV the column `model`, `id`, `name` or `file`, or else the first, names
        the models, ";" stands between several classes, and "[]" is none of the classes. JSON is
        {model: class or [class, …]}, {model: {column: class or [class, …]}} or a list of rows
        {"model": …, column: …}; JSON lines are such rows. A blank cell, null or nothing is
        "unknown". Whole numbers are names of classes; a column of other numbers holds numbers.

    Returns:
      The labels, by the names that the file has for the models (`Names` finds these).

    Raises:
      ProbexError: if the file cannot be read or is malformed, a model has two rows, or a value is
        no class; the row is named.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels.csv"
      >>> _ = path.write_text("model,kind,style,loss\\na,amp,rock;blues,0.1\\nb,pedal,,0.2\\n")
      >>> labels = read_labels(path)
      >>> labels.columns["kind"], labels.columns["style"], labels.numbers
      ({'a': ('amp',), 'b': ('pedal',)}, {'a': ('rock', 'blues')}, {'loss': {'a': 0.1, 'b': 0.2}})
    """
    where, data = shown(path), read_table(path)
    if path.suffix.lower() == ".csv":
        return _columns(_csv_rows(_text(data, where), where), where)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = ((f"{where}: line {n}", line) for n, line in enumerate(data.splitlines(), start=1))
        rows = (_row(json_object(line, here), here) for here, line in lines if line.strip())
        return _columns(rows, where)
    if data.lstrip().startswith(b"["):
        listed = enumerate(json_list(data, where), start=1)
        rows = (_row(row, f"{where}: row {n}") for n, row in listed)
        return _columns(rows, where)
    models = json_object(data, where)
    if not any(isinstance(said, dict) for said in models.values()):
        return Labels({"": {model: said for model, said in models.items() if said is not None}})
    rows = ((f"{where}: {quoted(model)}", model, said) for model, said in models.items())
    return _columns(rows, where)


def read_table(path: Path, *, with_mark: bool = False) -> bytes:
    """The bytes of a table, without a byte order mark unless asked for with it.

    Raises:
      ProbexError: if there is no such file, it is too large, or a link that leads out.
    """
    try:
        data = read_inside(path, MAX_TABLE_BYTES, "zoo")
    except OSError as error:
        raise ProbexError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    return data if with_mark else data.removeprefix(_BOM)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ProbexError(f"{where} is not UTF-8 text (byte {error.start})") from error


def _csv_rows(text: str, where: str) -> Iterator[_Row]:
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(table, [])]
        if len(header) < 2:
            raise ProbexError(
                f"{where}: expected a header of two or more columns, separated by commas"
            )
        lowered = [name.lower() for name in header]
        key = next((lowered.index(name) for name in _MODEL if name in lowered), 0)
        if unnamed := [n for n, name in enumerate(header, start=1) if not name and n != key + 1]:
            raise ProbexError(f"{where}: column {unnamed[0]} has no name")
        name, count = Counter(header).most_common(1)[0]
        if count > 1:
            raise ProbexError(f"{where}: two columns are called {quoted(name)}")
        for cells in table:
            here = f"{where}: line {table.line_num}"
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(header):
                raise ProbexError(f"{here}: {len(cells)} cells, expected {len(header)}")
            row = dict(zip(header, map(str.strip, cells), strict=True))
            model = row.pop(header[key])
            yield here, model, {name: _cell(cell) for name, cell in row.items()}
    except csv.Error as error:
        raise ProbexError(f"{where}: line {table.line_num}: not CSV: {error}") from error


def _cell(cell: str) -> str | list[str]:
    if cell == NONE_OF_THESE:
        return []
    return [part.strip() for part in cell.split(SEPARATOR)] if SEPARATOR in cell else cell


def _row(row: Any, where: str) -> _Row:
    if not isinstance(row, dict):
        raise ProbexError(f"{where}: expected an object, found {quoted(row)}")
    key = next((name for name in _MODEL if name in row), None)
    if key is None:
        raise ProbexError(f"{where}: names no model; expected one of {', '.join(_MODEL)}")
    return where, row[key], {name: value for name, value in row.items() if name != key}


def _columns(rows: Iterable[_Row], where: str) -> Labels:
    columns: dict[str, dict[str, tuple[str, Any]]] = {}
    seen: dict[str, str] = {}
    values = 0
    for here, model, row in rows:
        if not is_text(model) or not model.strip():
            raise ProbexError(f"{here}: {quoted(model)} is no name of a model")
        if model in seen:
            raise ProbexError(f"{here}: {quoted(model)} stands in {seen[model]}, too")
        seen[model] = here.removeprefix(f"{where}: ")
        if not isinstance(row, dict):
            raise ProbexError(f"{here}: expected column to class, as other models have it")
        values += 1 + len(row)
        if values > MAX_VALUES:
            raise ProbexError(f"{where} holds more than {MAX_VALUES} values")
        for name, value in row.items():
            if not is_text(name) or not name.strip():
                raise ProbexError(f"{here}: {quoted(name)} is no name of a column")
            column = columns.setdefault(name, {})
            if value not in (None, ""):
                column[model] = (here, value)
    numbers = tuple(
        name for name, column in columns.items() if _numbers([said for _, said in column.values()])
    )
    return Labels(
        {
            name: {m: classes_of(said, f"{here}: {name}") for m, (here, said) in column.items()}
            for name, column in columns.items()
            if name not in numbers
        },
        {name: _in_numbers(columns[name]) for name in numbers},
    )


def _in_numbers(column: Mapping[str, tuple[str, Any]]) -> dict[str, float]:
    found = {model: number_in(str(said)) for model, (_, said) in column.items()}
    return {model: number for model, number in found.items() if number is not None}


def number_in(text: str) -> float | None:
    """The number that a text spells, or None."""
    number = float(text) if _NUMBER.fullmatch(text) else nan
    return number if isfinite(number) else None


def _numbers(values: Sequence[Any]) -> bool:
    """Whether the values of a column are numbers, and not all of them whole."""
    texts = [str(value) for value in values if type(value) in (int, float, str)]
    whole = all(map(_WHOLE.fullmatch, texts))
    return len(texts) == len(values) and not whole and all(map(_NUMBER.fullmatch, texts))


def classes_of(value: Any, where: str) -> tuple[str, ...]:
    """The classes that a JSON value states: a class or a list of distinct ones.

    Raises:
      ProbexError: if it is something else; `where` is named.
    """
    listed = value if isinstance(value, list) else [value]
    return distinct_texts([_name(item) for item in listed], where, value)


def _name(value: Any) -> Any:
    """A class, whole numbers and truth values as JSON writes them."""
    return json.dumps(value) if isinstance(value, int) else value


def distinct_texts(texts: Sequence[Any], where: str, value: Any) -> tuple[str, ...]:
    """The texts, checked as names of classes; `where` and `value` are for the error.

    Raises:
      ProbexError: if one is no text or stands there twice.
    """
    if not all(isinstance(item, str) and item.strip() for item in texts):
        raise ProbexError(f"{where}: expected a class or a list of them, found {quoted(value)}")
    if odd := [text for text in texts if not is_text(text)]:
        raise ProbexError(f"{where}: {quoted(odd[0])} is no name of a class")
    if len(set(texts)) != len(texts):
        raise ProbexError(f"{where}: a class stands there twice: {quoted(value)}")
    return tuple(texts)
