"""The section of a report about attributes: how well weights tell each, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from probex_jax.experts import Predictions
from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.fitting import OneClass
from probex_jax.fitting.number import Number
from probex_jax.reports.attributes import number, percent
from probex_jax.reports.figures import MOST_POINTS, predicted_against_true, svg_image
from probex_jax.reports.html import Html, escaped, figure, html_table


def is_number(answered: Predictions | None) -> bool:
    """Whether what was predicted is a number."""
    return answered is not None and isinstance(answered.task, Number)


def told_attributes(
    attributes: Mapping[str, Mapping[str, Any]], answered: Mapping[str, Predictions | None]
) -> str:
    """Tables and pictures of the attributes that one expert was asked.

    Args:
      attributes: the metrics of each, by name.
      answered: the predictions of each for its test models, where they were kept.
    """
    rows = [dict(_row(name, each)) for name, each in attributes.items() if each["told"]]
    untold = [name for name, each in attributes.items() if not each["told"]]
    known = [each.get("conformal") for each in attributes.values()]
    made_for = {one["coverage"] for one in known if one}
    level = f", which should be {' or '.join(map(percent, sorted(made_for)))}"
    about = (
        "<p>R² for numbers, on a logarithmic scale where noted; accuracy for classes. Chance "
        "is that of always giving the mean or the most common answer. Covered: the share of test "
        f"models whose true value lies in the interval or set{level if made_for else ''}, with its "
        "95 % interval.</p>"
    )
    drawn = "".join(
        against_the_truth(name, found)
        for name, found in answered.items()
        if found is not None and is_number(found) and attributes[name]["told"]
    )
    table = (
        html_table(rows)
        if rows
        else "<p>None of the attributes can be predicted from the weights.</p>"
    )
    pictures = f'<div class="side">{drawn}</div>' if drawn else ""
    return about + table + pictures + _untold(untold, attributes)


def _row(name: str, each: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    score, covered = each["test_accuracy"], each.get("test_coverage")
    chance, of_number = chance_of(score), each["task"]["name"] == Number.name
    yield "attribute", name
    yield "asked", asked(each)
    yield "figure", Html(f"{'R²' if of_number else 'accuracy'} {_score(score)}")
    short = shortfall(score)
    beside = "" if chance is None else f"{chance:.3f}"
    yield "chance", f"{beside} ({short} it)" if short else beside
    yield "covered", _score(covered) if covered else ""
    yield "models", str(score["n_models"])


def asked(each: Mapping[str, Any]) -> str:
    """What is asked, in words, of the metrics of an attribute."""
    task, count = each["task"], len(each["classes"])
    if task["name"] == Number.name:
        return "a number, logarithmic" if task.get("log") else "a number"
    return f"{'one' if task['name'] == OneClass.name else 'any'} of {count}"


def _score(score: Mapping[str, Any]) -> Html:
    interval = f"{score['low']:.3f} to {score['high']:.3f}"
    return Html(
        f'<span class="nb">{score["value"]:.3f}</span> <span class="nb">({interval})</span>'
    )


def _untold(names: Sequence[str], attributes: Mapping[str, Mapping[str, Any]]) -> str:
    """What could not be told, with the figures that say so."""
    if not names:
        return ""
    items = "".join(
        f"<li>{escaped(name)}: {_score(score)}, chance {chance_of(score) or 0.0:.3f}, on "
        f"{score['n_models']} test models</li>"
        for name in names
        for score in [attributes[name]["test_accuracy"]]
    )
    return (
        "<h4>What could not be predicted</h4><p>On left-out models, answers were no better than "
        f"always giving the mean or the most common one. Cards leave these off.</p><ul>{items}</ul>"
    )


def against_the_truth(name: str, answered: Predictions) -> str:
    """Predicted over true numbers of the test models, and what their intervals cover."""
    task, true_N = answered.task, np.asarray(answered.y, np.float64)
    predicted_N, region_N2 = _numbers(answered), answered.region
    caption = f"{name}, {len(true_N)} test models."
    if region_N2 is not None and answered.conformal is not None:
        within_N = task.covered(region_N2, true_N) > 0
        caption += (
            f" The {percent(answered.conformal.coverage)} intervals contain the true value for "
            f"{int(within_N.sum())}; triangles mark the others."
        )
    if len(true_N) > MOST_POINTS:
        caption += f" A sample of {MOST_POINTS} is drawn."
    off_N = np.abs(predicted_N - true_N)
    caption += f" Median error: {number(float(np.median(off_N)))}."
    is_log = isinstance(task, Number) and task.log
    drawn = svg_image(
        lambda: predicted_against_true(true_N, predicted_N, region_N2, log=is_log),
        f"Predicted over true {name}",
    )
    return figure(drawn, caption)


def about_numbers(answered: Predictions) -> Iterator[tuple[str, str, str]]:
    """Title, group and emphasis of each model on a map."""
    edges = [number(float(edge)) for edge in np.quantile(answered.y, [0, 1 / 3, 2 / 3, 1])]
    thirds = np.searchsorted(np.quantile(answered.y, [1 / 3, 2 / 3]), answered.y)
    for name, true, value, third in zip(
        answered.ids, answered.y.tolist(), _numbers(answered).tolist(), thirds, strict=False
    ):
        group = f"{edges[third]} to {edges[third + 1]}"
        yield f"{name}: {number(true)}, predicted as {number(value)}", group, ""


def _numbers(answered: Predictions) -> np.ndarray:
    """[N] float64, the predicted numbers."""
    assert isinstance(answered.task, Number)
    return answered.task.predicted(answered.logits)[:, 0]
