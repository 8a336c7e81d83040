"""What the cells of a column are, as people write them: numbers, yes or no, or classes."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
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
# Spaces that do not break, minus signs and apostrophes, as ASCII has them.
_PLAIN = str.maketrans("\u00a0\u202f\u2009\u2212\u2019", "   -'")


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
    return next((n for read in _SPELLINGS if (n := read(text)) is not None), None)


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
      comma: whether "1,234" is 1.234 if all cells can be read so; else it is 1234.
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
    decimal_comma = comma and any("," in text for text in count)
    readings = [
        {text: n for text in count if (n := read(text)) is not None}
        for read in (_SPELLINGS[::-1] if decimal_comma else _SPELLINGS)
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
        raise ProbexError(f"{where}: {place}: {name}: {found}")
    return {model: best[text] for model, text in texts.items()}


def _are_numbers(values: Collection[float], cells: int) -> bool:
    if len(values) >= MANY or all(map(float.is_integer, values)):
        return len(values) >= MANY
    return 2 * len(values) > cells or any(0 < abs(value) < 1 for value in values)


def _more(others: list[tuple[str, Any]]) -> str:
    """Where there are other mistakes of this kind."""
    if not others:
        return ""
    places = ", ".join(place for place, _ in others[:_NAMED])
    cells = "cell" if len(others) == 1 else "cells"
    return f"; and {len(others)} more such {cells}: {places}{', …' * (len(others) > _NAMED)}"


def _spelling(point: str, group: str, percent: str) -> "re.Pattern[str]":
    grouped = rf"[1-9]\d{{0,2}}(?P<group>[{group} '_])\d{{3}}(?:(?P=group)\d{{3}})*"
    return re.compile(
        rf"([+-]? ?)({grouped}|\d*)(?:[{point}](\d*))?(e[+-]?\d+)?(?: ?{percent})",
        re.IGNORECASE | re.ASCII,
    )


def _read(pattern: "re.Pattern[str]", scale: float, text: str) -> float | None:
    if len(text) > _MOST_CHARACTERS:
        return None
    match = pattern.fullmatch(text.translate(_PLAIN).strip())
    if match is None:
        return None
    sign, whole, _, part, power = match.groups()
    whole = re.sub(r"\D", "", whole)
    if not (whole or part):
        return None
    number = float(f"{sign.strip()}{whole}.{part or ''}{power or ''}") / scale
    return number if isfinite(number) else None


# Decimal points, then commas; a column has percent signs everywhere or nowhere.
_SPELLINGS = tuple(
    partial(_read, _spelling(point, group, percent), scale)
    for point, group in (".,", ",.")
    for percent, scale in (("", 1.0), ("%", 100.0))
)
