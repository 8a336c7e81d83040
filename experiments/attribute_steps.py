"""Attributes that are predicted as well as stated: which differ, and how good predictions are."""

from collections import defaultdict

import numpy as np

import probex_jax as px
from experiments.forest_steps import Row, listed
from probex_jax.fitting.metrics import share
from probex_jax.forest import Answer, AttributeComparison, Description
from probex_jax.reports import attributes


class Beside:
    """Collects comparisons of attributes, of which each model may have several.

    Args:
      most: rows that are kept of numbers outside of their interval and classes that are wrong.
    """

    def __init__(self, most: int):
        self._most = most
        self._outside: list[tuple[float, Row]] = []
        self._found: dict[str, list[AttributeComparison]] = defaultdict(list)

    def add(self, description: Description | px.ProbexError) -> bool:
        """Takes the comparisons of a model; returns whether there are any."""
        if not isinstance(description, Description):
            return False
        answers = {answer.label_set: answer for answer in description.answers}
        for found in description.attribute_comparisons:
            answer = answers[found.attribute]
            self._found[found.attribute].append(found)
            if found.right is False or (found.right is None and not found.within):
                self._outside.append((_surprise(answer, found), _row(description, answer, found)))
        if len(self._outside) > 2 * self._most:
            self._outside = self._first()
        return bool(description.attribute_comparisons)

    def tables(self) -> list[list[Row]]:
        """Rows of what differs, the farthest first, and a row of each attribute's figures."""
        figures = [_figures(name, found) for name, found in sorted(self._found.items())]
        return [[row for _, row in self._first()], figures]

    def _first(self) -> list[tuple[float, Row]]:
        return sorted(self._outside, key=lambda each: -each[0])[: self._most]


def _surprise(answer: Answer, found: AttributeComparison) -> float:
    """How far outside: in widths of the interval, or one less the probability of what is stated."""
    if found.off is not None and (said := answer.quantity) is not None:
        return abs(found.off) / max(said.high - said.low, 1e-300)
    stated = set(found.stated) if isinstance(found.stated, tuple) else set()
    likely = [p.probability for p in answer.predictions if stated & {p.label, p.text}]
    return 1 - max(likely, default=0.0)


def _row(description: Description, answer: Answer, found: AttributeComparison) -> Row:
    said = answer.quantity
    if isinstance(found.stated, tuple):
        stated = ", ".join(found.stated)
    else:
        stated = f"{found.stated:,.6g}"
    predicted = attributes.predicted(answer) if said else listed(answer.predicted) or "none"
    return {
        "model": description.id,
        "attribute": found.attribute,
        "stated": stated,
        "predicted": predicted,
        "interval or set": attributes.held(answer),
    }


def _figures(name: str, found: list[AttributeComparison]) -> Row:
    """How often the truth lay within and, where that is told, what was right or how far off."""
    within = [one.within for one in found if one.within is not None]
    right = [one.right for one in found if one.right is not None]
    off = [abs(one.off) for one in found if one.off is not None]
    return {
        "attribute": name,
        "models": len(found),
        "within": str(share(np.array(within, float))) if within else "",
        "right": str(share(np.array(right, float))) if right else "",
        "median error": attributes.number(float(np.median(off))) if off else "",
        "R²": _r2(found),
    }


def _r2(found: list[AttributeComparison]) -> str:
    """The share of the stated numbers' variance that predictions explain."""
    pairs = [(one.stated, one.off) for one in found if one.off is not None]
    if len(pairs) < 2:
        return ""
    stated_N, off_N = np.array(pairs, float).T
    spread = np.square(stated_N - stated_N.mean()).sum()
    return f"{1 - np.square(off_N).sum() / spread:.2f}" if spread else ""
