"""Files of labels as people have them: CSV, JSON or JSON lines, several columns at once."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
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
)
from probex_jax.zoo.cells import (
    CLASSES,
    NUMBERS,
    called,
    has_decimal_commas,
    is_missing,
    numbers_of,
    yes_or_no,
)

MAX_TABLE_BYTES = 256 * 2**20
_SEP = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # the first line of a table for Excel
# Between several classes in a cell of CSV; a cell of `[]` says that a model has none of them.
SEPARATOR = ";"
NONE_OF_THESE = "[]"

_BOM = b"\xef\xbb\xbf"
_MARKS = {_BOM: "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_DELIMITERS = ",;\t"
# What the column that names the models may be called; else it is the first of CSV.
_MODEL = ("model", "id", "name", "file")


@dataclass(frozen=True)
class Labels:
    """What files say of the classes of models.

    Args:
      columns: label column to model to its classes, () for none of them; models whose label is
        unknown are not there. In the column "", of files that name no column, the classes are
        unchecked JSON.
      numbers: column of numbers to model to its number, those that are unknown left out, too.
      notes: lines about what was guessed, such as encodings.
    """

    columns: Mapping[str, Mapping[str, Any]]
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# A row: where it stands, the model, and column to value.
_Row = tuple[str, str, Mapping[str, Any]]


def read_labels(path: Path, kinds: Mapping[str, str] | None = None) -> Labels:
    """Reads a file of labels; by its suffix, CSV, JSON lines or JSON.

    Text is UTF-8, or UTF-16 with a byte order mark, or else is read as Windows-1252.

    Args:
      path: the file. In CSV (`.csv` or `.tsv`, with commas, semicolons or tabs between the cells)
        the column `model`, `id`, `name` or `file`, or else the first, names the models, ";" stands
        between several classes of a cell, and "[]" is none of the classes. JSON is
        {model: class or [class, …]}, {model: {column: class or [class, …]}} or a list of rows
        {"model": …, column: …}; JSON lines are such rows. Blank cells, null and what else
        `cells.is_missing` takes for such are "unknown". Columns of yes and no, true and false and
        so on have the classes "yes" and "no". `cells.numbers_of` tells which hold numbers.
      kinds: column to "numbers" or "classes", where that is known.

    Returns:
      The labels, by the names that the file has for the models (`Names` finds these).

    Raises:
      ProbexError: if the file cannot be read or is malformed, a model has two rows, or a value is
        no class, or no number in a column of numbers; the row is named.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels.csv"
      >>> _ = path.write_text("model,kind,style,loss\\na,amp,rock;blues,0.1\\nb,pedal,,0.2\\n")
      >>> labels = read_labels(path)
      >>> labels.columns["kind"], labels.columns["style"], labels.numbers
      ({'a': ('amp',), 'b': ('pedal',)}, {'a': ('rock', 'blues')}, {'loss': {'a': 0.1, 'b': 0.2}})
    """
    where = str(path)
    text, notes = _decoded(read_table(path, with_mark=True), where)
    if path.suffix.lower() in (".csv", ".tsv"):
        delimiter = _delimiter(text)
        cells = _cells(_csv_rows(text, delimiter, where), where)
        return _typed(cells, where, kinds or {}, notes, semicolons=delimiter == ";")
    data = text.encode()
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = ((f"{where}: line {n}", line) for n, line in enumerate(data.splitlines(), start=1))
        rows = (_row(json_object(line, here), here) for here, line in lines if line.strip())
    elif data.lstrip().startswith(b"["):
        listed = enumerate(json_list(data, where), start=1)
        rows = (_row(row, f"{where}: row {n}") for n, row in listed)
    else:
        models = json_object(data, where)
        if not any(isinstance(said, dict) for said in models.values()):
            own = {model: said for model, said in models.items() if said is not None}
            return Labels({"": own}, notes=notes)
        rows = ((f"{where}: {quoted(model)}", model, said) for model, said in models.items())
    return _typed(_cells(rows, where), where, kinds or {}, notes)


def read_table(path: Path, *, with_mark: bool = False) -> bytes:
    """The bytes of a table, without a byte order mark unless asked for with it.

    Raises:
      ProbexError: if there is no such file, it is too large, or a link that leads out.
    """
    try:
        data = read_inside(path, MAX_TABLE_BYTES, "zoo")
    except OSError as error:
        raise ProbexError(f"{path}: cannot be read: {error.strerror}") from error
    return data if with_mark else data.removeprefix(_BOM)


def _decoded(data: bytes, where: str) -> tuple[str, tuple[str, ...]]:
    """A text without its byte order mark, and a line about its encoding if that was guessed."""
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "")
    try:
        return data.decode(marked or "utf-8"), ()
    except UnicodeDecodeError as error:
        wrong = f"{where} is not {marked.removesuffix('-sig').upper() or 'UTF-8'} text"
        if marked:
            raise ProbexError(f"{wrong} (byte {error.start})") from error
        try:
            return data.decode("cp1252"), (f"{wrong}; read as Windows-1252",)
        except UnicodeDecodeError:
            raise ProbexError(f"{wrong} (byte {error.start}), nor Windows-1252") from error


def _delimiter(text: str) -> str:
    """What stands between the cells of the header: that which divides it into most."""

    if said := _SEP.match(text):
        return said[1]

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=cells)


def _csv_rows(text: str, delimiter: str, where: str) -> Iterator[_Row]:
    said = _SEP.match(text)
    number = int(said is not None)
    text = text[said.end() if said else 0 :]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header, key = _header(first := next(lines, []), where)
        number += 1
        for number, cells in enumerate(lines, start=number + 1):  # noqa: B020
            here = f"{where}: line {number}"
            if not any(map(str.strip, cells)):
                continue
            if len(cells) == len(first) and not any(map(str.strip, cells[len(header) :])):
                cells = cells[: len(header)]
            if len(cells) != len(header):
                raise ProbexError(f"{here}: {len(cells)} cells, expected {len(header)}")
            row = dict(zip(header, map(str.strip, cells), strict=True))
            model = row.pop(header[key])
            yield here, model, {name: _cell(cell) for name, cell in row.items()}
    except csv.Error as error:
        raise ProbexError(f"{where}: line {number + 1}: not CSV: {error}") from error


def _header(cells: Sequence[str], where: str) -> tuple[list[str], int]:
    """The names of the columns, and the place of the one that names the models."""
    header = [" ".join(name.split()) for name in cells]
    while header and not header[-1]:  # empty columns of spreadsheets
        header.pop()
    if len(header) < 2:
        raise ProbexError(
            f"{where}: expected a header of two or more columns, separated by commas, semicolons "
            "or tabs"
        )
    lowered = [name.lower() for name in header]
    key = next((lowered.index(name) for name in _MODEL if name in lowered), 0)
    if unnamed := [n for n, name in enumerate(header, start=1) if not name and n != key + 1]:
        raise ProbexError(f"{where}: column {unnamed[0]} has no name")
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise ProbexError(f"{where}: two columns are called {quoted(name)}")
    return header, key


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


def _cells(rows: Iterable[_Row], where: str) -> dict[str, dict[str, tuple[str, Any]]]:
    """Column to model to where its cell stands and what it holds; without what is missing."""
    columns: dict[str, dict[str, tuple[str, Any]]] = {}
    seen: dict[str, str] = {}
    values = 0
    for here, model, row in rows:
        if not is_text(model) or not model.strip():
            raise ProbexError(f"{here}: {quoted(model)} is not a valid model name")
        if model in seen:
            raise ProbexError(f"{here}: {quoted(model)} stands in {seen[model]}, too")
        seen[model] = place = here.removeprefix(f"{where}: ")
        if not isinstance(row, dict):
            raise ProbexError(f"{here}: expected column to class, as other models have it")
        values += 1 + len(row)
        if values > MAX_VALUES:
            raise ProbexError(f"{where} holds more than {MAX_VALUES} values")
        for name, value in row.items():
            if not is_text(name) or not name.strip():
                raise ProbexError(f"{here}: {quoted(name)} is not a valid column name")
            column = columns.setdefault(name, {})
            if not is_missing(value):
                column[model] = (place, value)
    return columns


def _typed(
    columns: Mapping[str, Mapping[str, tuple[str, Any]]],
    where: str,
    kinds: Mapping[str, str],
    notes: tuple[str, ...],
    *,
    semicolons: bool = False,
) -> Labels:
    classes: dict[str, Mapping[str, tuple[str, ...]]] = {}
    numbers: dict[str, Mapping[str, float]] = {}
    said = (value for column in columns.values() for _, value in column.values())
    comma = has_decimal_commas(said, semicolons)
    for name, column in columns.items():
        kind, found = kinds.get(name), None
        if kind != CLASSES:
            found = numbers_of(column, name, where, comma=comma, sure=kind == NUMBERS)
        if found is not None:
            numbers[name] = found
            continue
        truths = yes_or_no({model: said for model, (_, said) in column.items()})
        classes[name] = truths or {
            model: classes_of(said, f"{where}: {place}: {called(name)}")
            for model, (place, said) in column.items()
        }
    return Labels(classes, numbers, notes)


def labels_of(columns: Mapping[str, Mapping[str, Any]], where: str) -> Labels:
    """The labels of columns that were read elsewhere, as those of JSON.

    Args:
      columns: column to model to a value; none is missing.
      where: what errors name.

    Raises:
      ProbexError: as `read_labels`, of values.
    """
    cells = {
        name: {model: (quoted(model), value) for model, value in column.items()}
        for name, column in columns.items()
    }
    return _typed(cells, where, {}, ())


def classes_of(value: Any, where: str) -> tuple[str, ...]:
    """The classes that a JSON value states: a class or a list of distinct ones.

    Raises:
      ProbexError: if it is something else; `where` is named.
    """
    listed = value if isinstance(value, list) else [value]
    return distinct_texts([_name(item) for item in listed], where, value)


def _name(value: Any) -> Any:
    """A class, numbers and truth values as JSON writes them."""
    is_number = isinstance(value, int) or (isinstance(value, float) and isfinite(value))
    return json.dumps(value) if is_number else value


def distinct_texts(texts: Sequence[Any], where: str, value: Any) -> tuple[str, ...]:
    """The texts, checked as names of classes; `where` and `value` are for the error.

    Raises:
      ProbexError: if one is no text or stands there twice.
    """
    if not all(isinstance(item, str) and item.strip() for item in texts):
        raise ProbexError(f"{where}: expected a class or a list of them, found {quoted(value)}")
    if odd := [text for text in texts if not is_text(text)]:
        raise ProbexError(f"{where}: {quoted(odd[0])} is not a valid class name")
    if len(set(texts)) != len(texts):
        raise ProbexError(f"{where}: a class stands there twice: {quoted(value)}")
    return tuple(texts)
