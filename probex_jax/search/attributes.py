"""Predicted attributes in the table of an index: a typed column for each.

The columns are named `attribute_0` and so on; which attribute each is of stands in its metadata.
Conditions and orders name the attributes themselves: `text` is a field of the table, and an
attribute called so is `predicted_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.forest import Answer
from probex_jax.model_files.untrusted_text import quoted

# A number, a class, or several classes.
Attribute = float | str | tuple[str, ...]

FIELDS = ("id", "path", "tree", "split", "labels", "text", "stamp")
_TAKEN = (*FIELDS, "vector", "similarity", "rank")
_COLUMN = "attribute_"
_WORDS = ("and", "or", "not", "in", "is", "null", "like", "between", "true", "false")
_NAME = b"attribute"
# Strings, quoted names, words that call no function, and numbers of SQL.
_TOKENS = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|[^\W\d]\w*+(?!\()|\d[\w.]*")
_UNKNOWN = re.compile(r"No field named (.+?)\.(?: |$)")


def attributes_of(answers: Sequence[Answer]) -> dict[str, Attribute]:
    """What experts predict of a model, by the names of the attributes; classes as their names."""
    found: dict[str, Attribute] = {}
    for answer in answers:
        if not answer.label_set:
            continue
        if answer.quantity is not None:
            found[answer.label_set] = answer.quantity.value
        elif answer.chooses_one:
            found[answer.label_set] = answer.predictions[0].label
        else:
            found[answer.label_set] = tuple(p.label for p in answer.predicted)
    return found


def called(name: str) -> str:
    """What a table calls an attribute: none has the name of a field.

    Example:
      >>> called("accuracy"), called("text")
      ('accuracy', 'predicted_text')
    """
    return f"predicted_{name}" if name in _TAKEN else name


def columns_of(schema: Any) -> dict[str, str]:
    """Attribute to its column, of a table's Arrow schema."""
    fields = ((field, (field.metadata or {}).get(_NAME)) for field in schema)
    return {called(name.decode()): field.name for field, name in fields if name is not None}


def new_fields(arrow: Any, schema: Any, rows: Iterable[Mapping[str, Attribute]]) -> list[Any]:
    """The Arrow fields that attributes of some rows need and a table's schema lacks.

    Args:
      arrow: pyarrow.
      schema: of the table.
      rows: the attributes of each.

    Raises:
      ProbexError: if the table holds an attribute as another kind of value.
    """
    known = {name: schema.field(column).type for name, column in columns_of(schema).items()}
    several, fields = arrow.list_(arrow.string()), []
    for row in rows:
        for name, value in row.items():
            kind = arrow.float64() if isinstance(value, float) else arrow.string()
            kind = several if isinstance(value, tuple) else kind
            if name not in known:
                column = f"{_COLUMN}{len(known)}"
                fields.append(arrow.field(column, kind, metadata={_NAME: name.encode()}))
            if known.setdefault(name, kind) != kind:
                raise ProbexError(
                    f"attribute {quoted(name)}: {_kind(known[name])} in the index, now "
                    f"{_kind(kind)}; index again into another folder"
                )
    return fields


def _kind(arrow_type: Any) -> str:
    return {"double": "a number", "string": "a class"}.get(str(arrow_type), "several classes")


def with_attributes(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table whose attributes are gathered in one field; those without value left out.

    Args:
      row: its fields, which it loses.
      columns: attribute to its column.
    """
    values = {name: row.pop(column) for name, column in columns.items()}
    row["attributes"] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }
    return row


def in_columns(where: str, columns: Mapping[str, str]) -> str:
    """A condition on attributes as one on the table's columns.

    Args:
      where: in SQL. A name that is no SQL identifier stands in double quotes or backticks.
      columns: attribute to its column.

    Example:
      >>> in_columns("accuracy > .9 AND \\"learning rate\\" < 1e-3 AND id <> 'accuracy'",
      ...            {"accuracy": "attribute_0", "learning rate": "attribute_1"})
      "attribute_0 > .9 AND attribute_1 < 1e-3 AND id <> 'accuracy'"
    """

    return _TOKENS.sub(lambda found: columns.get(_named(found[0]), found[0]), where)


def names_in(where: str) -> list[str]:
    """The names that stand in a condition, of attributes or of anything else."""
    return [name for name in map(_named, _TOKENS.findall(where)) if name]


def _named(token: str) -> str:
    """The name that a token of SQL is; "" for a string, a number or a word of the language."""
    if token[0] in '"`':
        return token[1:-1].replace('""', '"')
    is_name = token[0] != "'" and not token[0].isdigit() and token.lower() not in _WORDS
    return token if is_name else ""


def explained(reason: str, columns: Mapping[str, str]) -> str:
    """LanceDB's reason why a condition is none, in names of attributes."""
    if (unknown := _UNKNOWN.search(reason)) is not None:
        return f"no field or attribute {unknown[1]}; there are {known(columns, FIELDS)}"
    for name, column in columns.items():
        reason = re.sub(rf"\b{column}\b", name.replace("\\", r"\\"), reason)
    return reason


def known(columns: Iterable[str], fields: Sequence[str] = ()) -> str:
    """The names of attributes and fields that there are, for messages."""
    listed = ", ".join([*fields, *columns])
    return listed if list(columns) else f"{listed or 'none'} (index with a forest for attributes)"


def order(sort: str, columns: Iterable[str]) -> tuple[str, bool]:
    """The attribute of an order, and whether the largest values come first.

    Args:
      sort: the attribute; behind "-" for the largest first.
      columns: the attributes that there are.

    Raises:
      ProbexError: if there is no such attribute.
    """
    names = list(columns)
    for name, is_falling in ((sort, False), (sort.removeprefix("-"), True)):
        if name in names:
            return name, is_falling
    raise ProbexError(f"sort {sort!r}: no such attribute; there are {known(names)}")


def several(name: str) -> ProbexError:
    """What is wrong with an order by an attribute of which a model has several classes."""
    return ProbexError(f"sort: {quoted(name)} holds several classes; expected a number or a class")
