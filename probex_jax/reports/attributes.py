"""Predicted attributes in words: numbers with their intervals, classes with their sets."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.forest import Answer
from probex_jax.forest.description import ExpertFacts

# Classes of a set that are listed.
_MOST = 12
# Significant digits: of a number at least, and of an interval's width.
_DIGITS = 2
_LARGEST_EXPONENT, _SMALLEST_EXPONENT = 12, -4


def in_a_row(answer: Answer) -> bool:
    """Whether an attribute fits into a row: a number, or one of several classes with a set."""
    return answer.quantity is not None or (answer.chooses_one and answer.likely is not None)


def number(value: float, width: float = 0.0) -> str:
    """A number with as many digits as an interval of some width makes sensible.

    Example:
      >>> number(0.002134, 0.0025), number(812.3, 500.0), number(23456.7, 30.0)
      ('0.0021', '810', '23,457')
      >>> number(2.13e-7, 1e-7), number(1e-4, 0.01), number(0.5)
      ('2.1e-07', '0.00010', '0.5')
    """
    if not math.isfinite(value):
        return "no limit"
    if not value:
        return "0"
    size = math.floor(math.log10(abs(value)))
    last = size - _DIGITS + 1 if width else size - _DIGITS
    if width and math.isfinite(width):
        last = min(last, math.floor(math.log10(width)) - _DIGITS + 1)
    if not _SMALLEST_EXPONENT <= size < _LARGEST_EXPONENT:
        return f"{value:.{size - last}e}"
    rounded = round(value, -last)
    shown = f"{rounded:,.{max(-last, 0)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown and not width else shown


def value(value: float | str | tuple[str, ...]) -> str:
    """A predicted attribute without its interval.

    Example:
      >>> value(0.9312), value(("a", "b"))
      ('0.931', 'a, b')
    """
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else ", ".join(value)


def predicted(answer: Answer, named: Callable[[str], str] = str) -> str:
    """The predicted number, or the most probable class and its probability.

    Args:
      answer: of an attribute that fits into a row.
      named: how the name of a class is shown.
    """
    if (found := answer.quantity) is not None:
        return number(found.value, found.high - found.low)
    return f"{named(answer.predictions[0].text)} {probability(answer.predictions[0].probability)}"


def held(answer: Answer, named: Callable[[str], str] = str) -> str:
    """The interval or the set; "" where there is none. Arguments as of `predicted`."""
    if (found := answer.quantity) is not None:
        width = found.high - found.low
        if math.isinf(found.low) and math.isinf(found.high):
            return "none: too few models"
        return f"{number(found.low, width)} to {number(found.high, width)}"
    if answer.likely is None:
        return ""
    words = {p.label: p.text for p in answer.predictions}
    listed = [named(words.get(label, label)) for label in answer.likely]
    more = f" and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
    return ", ".join(listed[:_MOST]) + more or "empty: unusually unsure of every class"


def coverage_of(answer: Answer) -> float | None:
    """The share of models that the interval or set of an answer is made to cover."""
    if (found := answer.quantity) is None:
        return answer.coverage
    return found.coverage if math.isfinite(found.low) or math.isfinite(found.high) else None


def percent(share: float) -> str:
    """A share as a percentage.

    Example:
      >>> percent(0.9), percent(0.955)
      ('90 %', '95.5 %')
    """
    return f"{100 * share:.3g} %"


def sentence(answer: Answer, named: Callable[[str], str] = str) -> str:
    """The prediction of one attribute on a line; arguments as of `predicted`.

    Example:
      >>> from probex_jax.forest import Quantity
      >>> expert = ExpertFacts("", (), "", 9, None, {}, "number")
      >>> sentence(Answer((), expert, "lr", Quantity(0.0021, 0.0012, 0.0037, 0.9)))
      'lr: 0.0021 (90 % interval 0.0012 to 0.0037)'
    """
    coverage, within = coverage_of(answer), held(answer, named)
    said = f"{named(answer.title)}: {predicted(answer, named)}"
    if not within:
        return said
    level = "" if coverage is None else f"{percent(coverage)} "
    if answer.quantity is not None:
        return f"{said} ({level}interval {within})"
    return f"{said} ({level}set: {within})"


def levels(answers: Sequence[Answer]) -> str:
    """What intervals and sets are made to cover, such as "90 %"; "" if none is known."""
    known = sorted({c for c in map(coverage_of, answers) if c is not None})
    return " or ".join(map(percent, known))


def quality(expert: ExpertFacts) -> str:
    """How good an attribute's predictions are on test models; "" if that was not measured.

    Example:
      >>> score = {"value": 0.84, "low": 0.78, "high": 0.89, "n_models": 40}
      >>> quality(ExpertFacts("", (), "", 9, score, {}, "number"))
      'R² 0.84 (0.78 to 0.89)'
    """
    found = expert.accuracy
    if found is None:
        return ""
    what = "R²" if expert.chosen == "number" else "right on"
    said = f"{what} {_score(found)}"
    chance, short = chance_of(found), shortfall(found)
    if chance is not None and expert.chosen != "number":
        said += f", chance {chance:.2f}"
    return f"{said}: {short} {'guessing' if expert.chosen == 'number' else 'it'}" if short else said


def covered(expert: ExpertFacts) -> str:
    """The share of test models whose truth lay within; "" if that was not measured."""
    return "" if expert.coverage is None else _score(expert.coverage)


def _score(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def rows(answers: Sequence[Answer], named: Callable[[str], str]) -> Iterator[dict[str, str]]:
    """A row for each attribute that fits into one; arguments as of `predicted`."""
    level = levels(answers)
    is_covered = any(answer.expert.coverage is not None for answer in answers)
    for answer in answers:
        yield {
            "attribute": named(answer.title),
            "predicted": predicted(answer, named),
            f"{level} interval or set".strip(): held(answer, named),
            "on test models": quality(answer.expert),
        } | ({"covered there": covered(answer.expert)} if is_covered else {})


def probability(p: float) -> str:
    """A probability, never as none or one."""
    return "> 0.999" if p >= 0.9995 else "< 0.001" if p < 0.0005 else f"{p:.3f}"
