"""What the cells of a column are, as people write them: numbers, yes or no, or classes."""

import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from math import isfinite, isnan
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import quoted

# What `zoo.json` may call a column.
NUMBERS, CLASSES = "numbers", "classes"
KINDS = (NUMBERS, CLASSES)
# From so many values on they are numbers, even whole ones, or ones that could be versions.
MANY = 13
# Of the different cells of a column of numbers, so many are numbers; the others are mistakes.
_MOST = 0.75
_NAMED = 4

_MISSING = {"", "-", "–", "—", "?", "NA", "N/A", "n/a", "#N/A"}  # noqa: RUF001
_MISSING_WORDS = {"nan", "null"}  # in any case
_MISSING_NUMBERS = {"none", "na"}
_TRUTHS = (("yes", "no"), ("true", "false"), ("y", "n"), ("t", "f"), ("on", "off"))

_MOST_CHARACTERS = 64
_LARGEST = sys.float_info.max
# Spaces that do not break, minus signs and apostrophes, as ASCII has them.
_PLAIN = str.maketrans("\u00a0\u202f\u2009\u2212\u2019", "   -'")


def called(column: str) -> str:
    """The name of a column as a one-line message may hold it."""
    return column if column.isprintable() and len(column) <= _MOST_CHARACTERS else quoted(column)


def is_missing(value: Any) -> bool:
    """Whether a cell says that nothing is known: blank, null, NaN, NA, N/A, #N/A, "-" or "?"."""
    if isinstance(value, str):
        return (text := value.strip()) in _MISSING or text.lower() in _MISSING_WORDS
    return value is None or (isinstance(value, float) and isnan(value))


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value)


def yes_or_no(values: Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    """The classes "yes" and "no" of cells that are all of one pair of such words; else None.

    Example:
      >>> yes_or_no({"a": True, "b": "FALSE"}), yes_or_no({"a": "y", "b": "off"})
      ({'a': ('yes',), 'b': ('no',)}, None)
    """
    words = {model: _text(value).lower() for model, value in values.items()}
    for yes, no in _TRUTHS:
        if {yes, no}.issuperset(words.values()):
            return {model: ("yes" if word == yes else "no",) for model, word in words.items()}
    return None


def number_in(text: str) -> float | None:
    """The number that a text spells, or None.

    Example:
      >>> [number_in(text) for text in ("1e-4", "0,5", "1,234.5", "93 %", "inf", "v2")]
      [0.0001, 0.5, 1234.5, 0.93, None, None]
    """
    return next((number for number in _readings(text) if number is not None), None)


def numbers_of(
    cells: Mapping[str, tuple[str, Any]],
    name: str,
    where: str = "",
    *,
    comma: bool = False,
    sure: bool = False,
) -> dict[str, float] | None:
    """The numbers of a column, or None if it holds classes.

    It holds numbers if at least three quarters of its different cells are numbers, of which

    - there are 13 different ones or more, or
    - not all are whole, and there are more than half as many as cells or one is between -1 and 1.

    Others are classes: whole numbers of few values, and few versions such as 1.5 and 2.1.

    Args:
      cells: model to where its cell stands and what it holds; none is missing.
      name: of the column.
      where: the file, for errors.
      comma: whether "1,234" is 1.234 and "1.234" 1234 if all cells can be read so.
      sure: whether it is known that the column holds numbers.

    Raises:
      ProbexError: if some cells of a column of numbers are none, or are spelled in another way, as
        without a percent sign that the others have; the first is named, and where others stand.

    Example:
      >>> numbers_of({"a": ("line 2", "0,1"), "b": ("line 3", "0,25")}, "lr")
      {'a': 0.1, 'b': 0.25}
    """
    texts = {model: _text(value) for model, (_, value) in cells.items()}
    texts = {m: text for m, text in texts.items() if text.lower() not in _MISSING_NUMBERS}
    count = Counter(texts.values())
    exact = {_text(value): n for _, value in cells.values() if (n := _exact(value)) is not None}
    spelled = {text: _readings(text) for text in count}
    percent = [text for text in count if text.endswith("%")]
    plain = [text for text in count if not text.endswith("%")]
    readings = [
        {text: n for text in alike if (n := spelled[text][way]) is not None} | exact
        for way in ((1, 0) if comma else (0, 1))
        for alike in (plain, percent)
    ]
    known = {text: n for reading in readings for text, n in reading.items()}
    told = len(known) >= _MOST * len(count) and _are_numbers(set(known.values()), len(texts))
    if not texts or not (told or sure):
        return None
    best = max(readings, key=lambda reading: sum(count[text] for text in reading))
    if wrong := [model for model, text in texts.items() if text not in best]:
        such = f" such as {quoted(next(iter(best)))}" if best else ""
        (place, value), *others = [cells[model] for model in wrong]
        found = f"expected a number{such}, found {quoted(value)}{_more(others)}"
        raise ProbexError(f"{where}: {place}: {called(name)}: {found}")
    return {model: best[text] for model, text in texts.items()}


def has_decimal_commas(cells: Iterable[Any], semicolons: bool) -> bool:
    """Whether the numbers of a table have decimal commas, by those that can be read in one way.

    Args:
      cells: all cells of the table.
      semicolons: whether they stand between the cells; it decides if all can be read in both ways.
    """
    points = commas = either = 0
    for text in {cell for cell in cells if isinstance(cell, str)}:
        if "," in text or "." in text:
            point, comma = (number is not None for number in _readings(text))
            points += point and not comma
            commas += comma and not point
            either += point and comma and "," in text
    return commas > points or (commas == points and semicolons and either > 0)


def _are_numbers(values: Collection[float], cells: int) -> bool:
    if len(values) >= MANY or all(map(float.is_integer, values)):
        return len(values) >= MANY
    return 2 * len(values) > cells or any(0 < abs(value) < 1 for value in values)


def _exact(value: Any) -> float | None:
    """A number of JSON, which has one spelling, without those that are infinite."""
    if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)


def _more(others: list[tuple[str, Any]]) -> str:
    """Where there are other mistakes of this kind."""
    if not others:
        return ""
    places = ", ".join(place for place, _ in others[:_NAMED])
    cells = "cell" if len(others) == 1 else "cells"
    return f"; and {len(others)} more such {cells}: {places}{', …' * (len(others) > _NAMED)}"


def _spelling(point: str, group: str) -> "re.Pattern[str]":
    grouped = rf"[1-9]\d{{0,2}}(?P<group>[{group} '_])\d{{3}}(?:(?P=group)\d{{3}})*"
    return re.compile(
        rf"([+-]? ?)({grouped}|\d*)(?:[{point}](\d*))?(e[+-]?\d+)?", re.IGNORECASE | re.ASCII
    )


# With decimal points, and with decimal commas.
_SPELLINGS = _spelling(".", ","), _spelling(",", ".")


def _readings(text: str) -> "tuple[float | None, float | None]":
    """The number that a text spells with decimal points, and that with decimal commas."""
    if len(text) > _MOST_CHARACTERS:
        return None, None
    plain = text.translate(_PLAIN).strip()
    scale = 100.0 if plain.endswith("%") else 1.0
    plain = plain.removesuffix("%").rstrip()
    point = _value(_SPELLINGS[0].fullmatch(plain), scale)
    if "," in plain or "." in plain:
        return point, _value(_SPELLINGS[1].fullmatch(plain), scale)
    return point, point


def _value(match: "re.Match[str] | None", scale: float) -> float | None:
    if match is None:
        return None
    sign, whole, group, part, power = match.groups()
    if group:
        whole = whole.replace(group, "")
    if not (whole or part):
        return None
    number = float(f"{sign.strip()}{whole}.{part or ''}{power or ''}") / scale
    return number if isfinite(number) else None
