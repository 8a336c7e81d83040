"""What one training found, in sections of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import Predictions as Answered
from probex_jax.fitting import reliability
from probex_jax.forest import Prediction
from probex_jax.reports.charts import FEW, calibration_curve
from probex_jax.reports.described import answers, one_model, side_by_side
from probex_jax.reports.html import Html, escaped, figure, html_table
from probex_jax.reports.interactive_map import MapPoint, interactive_map
from probex_jax.reports.layout import in_the_plane, shown_on_a_map
from probex_jax.zoo.model_j import SPLITS

# Test models that are shown beside the truth.
_TOLD = 10
# The most classes that a matrix is legible with, and the most lines of a table.
_MOST_IN_A_MATRIX = 24
_MOST_LINES = 40
_NOT_KEPT = (
    "<p>An earlier version did this training and kept no answers for the test models; in a new "
    "work directory they are kept.</p>"
)


@dataclass(frozen=True)
class Training:
    """One training, for a report.

    Args:
      method: what it is called beside others of its tree.
      metrics: as `sweep` or `run_statnn` return them.
      answered: what it kept of the test; None if that is gone.
      settings: its config, as nested dicts.
    """

    method: str
    metrics: Mapping[str, Any]
    answered: Answered | None
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Tree and method."""
        return f"{self.metrics['tree']}, {self.method}"


def calibration(training: Training) -> str:
    """The calibration curve, before and after, with the numbers under it."""
    if "calibration" not in training.metrics:
        return (
            "<p>This method gives no calibrated probabilities: it has no temperature, and none of "
            "its answers are said to be probable so and so much.</p>"
        )
    answered, about = training.answered, training.metrics["calibration"]
    if answered is None:
        return _NOT_KEPT
    before, after = (_reliability(answered, t) for t in (1.0, about["temperature"]))
    errors = [about[when]["test"] for when in ("before", "after")]
    said = (
        f"Temperature {about['temperature']:.3f}, chosen on validation. Expected calibration error "
        f"on test models: {errors[0]:.3f} before, {errors[1]:.3f} after."
    )
    drawn = calibration_curve(f"Calibration of {training.name}", {"before": before, "after": after})
    shown = f"Dashed: as promised. Small points: fewer than {FEW} answers."
    what = (
        "probability that a model is of a class"
        if not answered.task.exclusive
        else "probability of the likeliest class"
    )
    n_bins = after.shape[1]
    rows = [
        {
            "bin": f"{number / n_bins:.2f} to {(number + 1) / n_bins:.2f}",
            "answers": f"{after[0, number]:.0f}",
            "promised": f"{after[1, number] / after[0, number]:.3f}",
            "came true": f"{after[2, number] / after[0, number]:.3f}",
        }
        for number in np.flatnonzero(after[0])
    ]
    numbers = html_table(rows, caption=f"After calibration: {what}")
    return f"<p>{said}</p>{figure(drawn, shown)}{numbers}"


def _reliability(answered: Answered, temperature: float) -> np.ndarray:
    return reliability(*answered.task.promises(_probabilities(answered, temperature), answered.y))


def _probabilities(answered: Answered, temperature: float) -> np.ndarray:
    return np.asarray(answered.task.predictions(jnp.asarray(answered.logits), temperature))


def confusion(training: Training) -> str:
    """Which classes were told rightly, and which not."""
    answered = training.answered
    if answered is None:
        return _NOT_KEPT
    return _of_several(answered) if not answered.task.exclusive else _of_one(answered)


def _of_several(answered: Answered) -> str:
    said_NY, so_NY = answered.logits > 0, answered.y > 0
    counts = {
        "models of it": so_NY.sum(0),
        "found": (said_NY & so_NY).sum(0),
        "missed": (~said_NY & so_NY).sum(0),
        "other models": (~so_NY).sum(0),
        "wrongly said": (said_NY & ~so_NY).sum(0),
    }
    wrong_Y = counts["missed"] + counts["wrongly said"]
    worst = np.argsort(-wrong_Y, kind="stable")[:_MOST_LINES]
    rows = [
        {"class": answered.classes[y]}
        | {name: str(count[y]) for name, count in counts.items()}
        | {"right": f"{1 - wrong_Y[y] / len(answered.y):.3f}"}
        | ({"chance": f"{answered.chance_by_class[y]:.3f}"} if answered.chance_by_class else {})
        for y in worst
    ]
    left_out = len(answered.classes) - len(worst)
    return html_table(
        rows,
        caption=f"Each class, of {len(answered.y)} test models; the most mistaken first"
        + (f", {left_out} more left out" if left_out else ""),
    )


def _of_one(answered: Answered) -> str:
    said_N = answered.logits.argmax(axis=1)
    n_right, n_models = int((said_N == answered.y).sum()), len(answered.y)
    said = f"<p>{n_right} of {n_models} test models were given their class.</p>"
    if len(answered.classes) <= _MOST_IN_A_MATRIX:
        return said + _matrix(answered, said_N)
    wrong = Counter((int(y), int(s)) for y, s in zip(answered.y, said_N, strict=True) if y != s)
    rows = [
        {
            "class": answered.classes[y],
            "taken for": answered.classes[s],
            "models": str(count),
            "of": str(int((answered.y == y).sum())),
        }
        for (y, s), count in wrong.most_common(_MOST_LINES)
    ]
    if not rows:
        return f"{said}<p>None of the {len(answered.classes)} classes was taken for another.</p>"
    left_out = len(wrong) - len(rows)
    more = f"; {left_out} more left out" if left_out else ""
    return said + html_table(rows, caption=f"What was taken for what{more}")


def _matrix(answered: Answered, said_N: np.ndarray) -> str:
    """Numbers, darker where there are more; what is right is on the diagonal, in bold."""
    count = len(answered.classes)
    counts_YY = np.bincount(answered.y * count + said_N, minlength=count**2).reshape(count, count)
    most = max(int(counts_YY.max()), 1)

    def cell(row: int, column: int) -> str:
        number = int(counts_YY[row, column])
        shade = 1 - 0.55 * number / most
        style = f"background:rgb({255 * shade:.0f} {255 * shade:.0f} 255)"
        shown = str(number) if number else "·"
        return f'<td class="n" style="{style}">{f"<b>{shown}</b>" if row == column else shown}</td>'

    head = "".join(
        f'<th scope="col" class="up"><span>{escaped(name)}</span></th>' for name in answered.classes
    )
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        f"{''.join(cell(row, column) for column in range(count))}</tr>"
        for row, name in enumerate(answered.classes)
    )
    return (
        '<div class="wide" tabindex="0"><table class="matrix"><caption>Rows: what the models are. '
        f"Columns: what was said.</caption><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def beside_the_truth(training: Training) -> str:
    """The first ten test models: what was answered, and what is true."""
    answered = training.answered
    if answered is None:
        return _NOT_KEPT
    if "calibration" not in training.metrics:
        return ""
    p_NY = _probabilities(answered, training.metrics["calibration"]["temperature"])
    chosen = "several" if not answered.task.exclusive else "one"
    models = [
        one_model(name, answers(_likeliest_first(answered.classes, p_Y), labels, chosen))
        for name, labels, p_Y in zip(
            answered.ids[:_TOLD], answered.labels[:_TOLD], p_NY[:_TOLD], strict=False
        )
    ]
    first = f"The first {len(models)} of {len(p_NY)}" if len(models) < len(p_NY) else "The"
    return side_by_side(f"{first} test models of {training.name}.", models)


def _likeliest_first(classes: Sequence[str], p_Y: np.ndarray) -> list[Prediction]:
    return [
        Prediction(classes[y], classes[y], float(p_Y[y])) for y in np.argsort(-p_Y, kind="stable")
    ]


def embeddings(training: Training) -> str:
    """The map of the test models."""
    answered = training.answered
    if answered is None:
        return _NOT_KEPT
    if not len(answered.vectors):
        return "<p>This method represents no models.</p>"
    shown = shown_on_a_map(len(answered.vectors))
    try:
        points_M2 = in_the_plane(answered.vectors[shown])
    except ProbexError as error:
        return f"<p>There is none: {escaped(str(error))}.</p>"
    about = list(_about(answered))
    points = [
        MapPoint(float(x), float(y), *about[place])
        for (x, y), place in zip(points_M2, shown, strict=True)
    ]
    if not answered.task.exclusive:
        points.sort(key=lambda point: point.group)
    colours = "How many classes were told wrongly" if not answered.task.exclusive else "Classes"
    some = f"A sample of {len(shown):,} of the" if len(shown) < len(about) else "The"
    return interactive_map(
        points,
        caption=f"{some} {len(about):,} test models of {training.name}, near where their weights "
        f"are represented alike. {colours} give colour and shape.",
        emphasised={"ring": "of a class that was held out"},
    )


def _about(answered: Answered) -> Iterator[tuple[str, str, str]]:
    """Title, group and emphasis of each model."""
    seen = set(answered.classes)
    for number, (name, labels) in enumerate(zip(answered.ids, answered.labels, strict=True)):
        truth = ", ".join(labels)
        if number >= len(answered.y):
            group = "held out" if not answered.task.exclusive else truth
            yield f"{name}: {truth}", group, "" if seen & set(labels) else "ring"
        elif not answered.task.exclusive:
            wrong = (answered.logits[number] > 0) != (answered.y[number] > 0)
            which = ", ".join(answered.classes[y] for y in np.flatnonzero(wrong)[:4])
            n_wrong = int(wrong.sum())
            group = f"{n_wrong} wrong" if n_wrong < 3 else "3 wrong or more"
            yield f"{name}: {n_wrong} wrong{f' ({which})' if which else ''}", group, ""
        else:
            said = answered.classes[int(answered.logits[number].argmax())]
            verdict = "told rightly" if said in labels else f"taken for {said}"
            yield f"{name}: {truth}, {verdict}", truth, ""


def split_rows(trainings: Sequence[Training]) -> list[dict[str, str]]:
    """How many models of each tree were for what; a row a tree."""
    by_tree: dict[str, Mapping[str, Any]] = {}
    for training in trainings:
        if "n_models" in training.metrics:
            by_tree.setdefault(training.metrics["tree"], training.metrics)
    splits = [s for s in SPLITS if any(s in found["n_models"] for found in by_tree.values())]
    return [
        {"tree": tree}
        | {split: str(found["n_models"].get(split, 0)) for split in splits}
        | {"hash of the store": Html(f"<code>{escaped(found['store_hash'])}</code>")}
        for tree, found in by_tree.items()
    ]
