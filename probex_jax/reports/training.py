"""The sections of a report about trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import Predictions
from probex_jax.fitting import reliability
from probex_jax.fitting.metrics import auc_by_class
from probex_jax.forest import Prediction
from probex_jax.reports.figures import FEW, accuracy_by_layer, calibration_curve, svg_image
from probex_jax.reports.html import Html, escaped, figure, html_table
from probex_jax.reports.interactive_map import MapPoint, interactive_map
from probex_jax.reports.map_layout import layout_2d, sample_for_map
from probex_jax.reports.predictions import ModelAnswers, answers, as_html
from probex_jax.reports.told import (
    about_numbers,
    against_the_truth,
    is_number,
    told_attributes,
)
from probex_jax.zoo.model_j import SPLITS

# Layers that fit into a figure.
_MAX_BARS = 24
# Test models that are shown beside the truth.
_MAX_COMPARED = 10
# Classes with which a matrix is legible, and rows of a table.
_MAX_IN_A_MATRIX = 24
_MAX_ROWS = 40
_NOT_KEPT = (
    "<p>This training was done by an earlier version, which did not save its predictions. Train "
    "again in a new work directory to see them.</p>"
)
_BY_LAYER = "val_accuracy_by_layer"

# Method to layer to accuracy.
_ByLayer = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Training:
    """One training, for a report.

    Args:
      method: its name among the trainings of its tree.
      metrics: from `sweep` or `run_statnn`.
      answered: its predictions for the test models; None if an earlier version did not save them.
      settings: its config, as nested dicts.
      attributes: of a joint training the predictions for each attribute, and none in `answered`.
    """

    method: str
    metrics: Mapping[str, Any]
    answered: Predictions | None
    settings: Mapping[str, Any]
    attributes: Mapping[str, Predictions | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Tree and method."""
        return f"{self.metrics['tree']}, {self.method}"


def by_layer(trainings: Sequence[Training]) -> str:
    """Accuracy by layer where it was chosen, a part per tree; "" if no method reads layers."""
    trainings = [t for t in trainings if _BY_LAYER in t.metrics]
    trees = dict.fromkeys(t.metrics["tree"] for t in trainings)
    parts = (_of_tree(tree, [t for t in trainings if t.metrics["tree"] == tree]) for tree in trees)
    about = (
        "<p>Accuracy of each layer alone on left-out models, not on test models. "
        "Methods that read all layers at once are not shown.</p>"
    )
    return f'{about}<div class="side">{"".join(parts)}</div>' if trees else ""


def _of_tree(tree: str, trainings: Sequence[Training]) -> str:
    known = (t.metrics["val_chance"] for t in trainings if "val_chance" in t.metrics)
    chance = next(known, None)
    methods = {t.method: t.metrics[_BY_LAYER] for t in trainings}
    layers = list(dict.fromkeys(layer for found in methods.values() for layer in found))
    rows = [
        {"layer": layer}
        | {name: f"{of[layer]:.3f}" if layer in of else "" for name, of in methods.items()}
        for layer in layers
    ]
    drawn = svg_image(
        lambda: accuracy_by_layer({tree: _best(methods, layers)}, chance={tree: chance}),
        f"Accuracy by layer, {tree}",
    )
    some = f" The best {_MAX_BARS} of {len(layers)} layers." if len(layers) > _MAX_BARS else ""
    at = "" if chance is None else f", chance {chance:.3f}"
    return (
        f"<div>{figure(drawn, f'{tree}{at}.{some}')}<details><summary>Figures of all {len(layers)} "
        f"layers</summary>{html_table(rows)}</details>{_left_out(trainings)}</div>"
    )


def _best(methods: _ByLayer, layers: Sequence[str]) -> _ByLayer:
    """The figures of the best layers, in the order of all."""
    best = {layer: max(found.get(layer, 0.0) for found in methods.values()) for layer in layers}
    drawn = set(sorted(layers, key=best.__getitem__, reverse=True)[:_MAX_BARS])
    return {
        method: {layer: found[layer] for layer in layers if layer in drawn and layer in found}
        for method, found in methods.items()
    }


def _left_out(trainings: Sequence[Training]) -> str:
    """Layers that no method read, and why."""
    reasons: dict[str, str] = {}
    for training in trainings:
        reasons |= training.metrics["left_out"]
    if not reasons:
        return ""
    count = f"{len(reasons)} layer{'s were' if len(reasons) > 1 else ' was'} left out"
    listed = "".join(f"<li>{escaped(reason)}</li>" for reason in reasons.values())
    return f"<details><summary>{count}</summary><ul>{listed}</ul></details>"


def calibration(training: Training) -> str:
    """The calibration curve before and after temperature scaling, and its numbers."""
    if training.attributes or is_number(training.answered):
        return ""
    if "calibration" not in training.metrics:
        return "<p>This method gives no calibrated probabilities.</p>"
    answered, about = training.answered, training.metrics["calibration"]
    if answered is None:
        return _NOT_KEPT
    before, after = (_reliability(answered, t) for t in (1.0, about["temperature"]))
    errors = [about[when]["test"] for when in ("before", "after")]
    about_it = (
        f"Temperature {about['temperature']:.3f}, chosen without the test models. Expected "
        f"calibration error on these: {errors[0]:.3f} before, {errors[1]:.3f} after."
    )
    drawn = svg_image(
        lambda: calibration_curve({"before": before, "after": after}),
        f"Calibration of {training.name}",
    )
    shown = f"Dashed: perfect calibration. Small points: fewer than {FEW} predictions."
    n_bins = after.shape[1]
    rows = [
        {
            "bin": f"{number / n_bins:.2f}-{(number + 1) / n_bins:.2f}",
            "predictions": f"{after[0, number]:.0f}",
            "mean probability": f"{after[1, number] / after[0, number]:.3f}",
            "observed frequency": f"{after[2, number] / after[0, number]:.3f}",
        }
        for number in np.flatnonzero(after[0])
    ]
    numbers = html_table(rows, caption=f"After calibration: {answered.task.promised}")
    return f"<p>{about_it}</p>{figure(drawn, shown)}{numbers}"


def _reliability(answered: Predictions, temperature: float) -> np.ndarray:
    return reliability(*answered.task.promises(_probabilities(answered, temperature), answered.y))


def _probabilities(answered: Predictions, temperature: float) -> np.ndarray:
    return np.asarray(answered.task.predictions(jnp.asarray(answered.logits), temperature))


def confusion(training: Training) -> str:
    """Right and wrong predictions by class."""
    if training.attributes:
        classes = {n: found for n, found in training.attributes.items() if not is_number(found)}
        return "".join(f"<h4>{escaped(n)}</h4>{_confusion(found)}" for n, found in classes.items())
    return "" if is_number(training.answered) else _confusion(training.answered)


def told_by_weights(training: Training) -> str:
    """What is told of numbers and of several attributes at once; "" of other trainings."""
    if training.attributes:
        return told_attributes(training.metrics["attributes"], training.attributes)
    found = training.answered
    return against_the_truth(found.classes[0], found) if found and is_number(found) else ""


def _confusion(answered: Predictions | None) -> str:
    if answered is None:
        return _NOT_KEPT
    return _of_several(answered) if not answered.task.exclusive else _of_one(answered)


def _of_several(answered: Predictions) -> str:
    predicted_NY, true_NY = answered.logits > 0, answered.y > 0
    counts = {
        "positive": true_NY.sum(0),
        "true positive": (predicted_NY & true_NY).sum(0),
        "false negative": (~predicted_NY & true_NY).sum(0),
        "negative": (~true_NY).sum(0),
        "false positive": (predicted_NY & ~true_NY).sum(0),
    }
    wrong_Y = counts["false negative"] + counts["false positive"]
    worst = np.argsort(-wrong_Y, kind="stable")[:_MAX_ROWS]
    areas = auc_by_class(answered.task.evidence(answered.logits), answered.y)
    rows = [
        {"class": answered.classes[y]}
        | {name: str(count[y]) for name, count in counts.items()}
        | {"AUC": f"{areas[y]:.3f}" if y in areas else ""}
        | {"accuracy": f"{1 - wrong_Y[y] / len(answered.y):.3f}"}
        | ({"chance": f"{answered.chance_by_class[y]:.3f}"} if answered.chance_by_class else {})
        for y in worst
    ]
    left_out = len(answered.classes) - len(worst)
    return html_table(
        rows,
        caption=f"Predictions for {len(answered.y)} test models by class, most errors first"
        + (f"; {left_out} classes left out" if left_out else ""),
    )


def _of_one(answered: Predictions) -> str:
    predicted_N = answered.logits.argmax(axis=1)
    n_right, n_models = int((predicted_N == answered.y).sum()), len(answered.y)
    accuracy = f"<p>{n_right} of {n_models} test models were classified correctly.</p>"
    accuracy += _by_class(answered)
    if len(answered.classes) <= _MAX_IN_A_MATRIX:
        return accuracy + _matrix(answered, predicted_N)
    wrong = Counter(
        (int(y), int(s)) for y, s in zip(answered.y, predicted_N, strict=True) if y != s
    )
    rows = [
        {
            "class": answered.classes[y],
            "predicted": answered.classes[s],
            "models": str(count),
            "of": str(int((answered.y == y).sum())),
        }
        for (y, s), count in wrong.most_common(_MAX_ROWS)
    ]
    if not rows:
        return accuracy
    left_out = len(wrong) - len(rows)
    more = f"; {left_out} rarer ones left out" if left_out else ""
    return accuracy + html_table(rows, caption=f"Most frequent confusions{more}")


def _by_class(answered: Predictions) -> str:
    """Of each class the share that was found, beside how common it is; rarest found first."""
    found = answered.task.accuracy_by_class(answered.logits, answered.y)
    areas = auc_by_class(answered.task.evidence(answered.logits), answered.y)
    rows = [
        {
            "class": answered.classes[y],
            "models": str(int((answered.y == y).sum())),
            "AUC": f"{areas[y]:.3f}" if y in areas else "",
            "found": f"{found[y]:.3f}",
        }
        | ({"chance": f"{answered.chance_by_class[y]:.3f}"} if answered.chance_by_class else {})
        for y in sorted(found, key=found.__getitem__)[:_MAX_ROWS]
    ]
    caption = "Found: share of a class's models. Chance: guessing the class as often as it occurs"
    return html_table(rows, caption=caption)


def _matrix(answered: Predictions, predicted_N: np.ndarray) -> str:
    """Counts, shaded by size; correct ones are on the diagonal, in bold."""
    count = len(answered.classes)
    counts_YY = np.bincount(answered.y * count + predicted_N, minlength=count**2).reshape(
        count, count
    )
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
        '<div class="wide" tabindex="0"><table class="matrix"><caption>Rows: true '
        f"class. Columns: predicted class.</caption><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def beside_the_truth(training: Training) -> str:
    """Predictions for the first ten test models beside the truth."""
    if training.attributes or is_number(training.answered):
        return ""
    answered = training.answered
    if answered is None:
        return _NOT_KEPT
    if "calibration" not in training.metrics:
        return ""
    p_NY = _probabilities(answered, training.metrics["calibration"]["temperature"])
    chosen = "one" if answered.task.exclusive else "several"
    models = [
        ModelAnswers(name, answers(_most_probable_first(answered.classes, p_Y), labels, chosen))
        for name, labels, p_Y in zip(
            answered.ids[:_MAX_COMPARED],
            answered.labels[:_MAX_COMPARED],
            p_NY[:_MAX_COMPARED],
            strict=False,
        )
    ]
    first = f"The first {len(models)} of {len(p_NY)}" if len(models) < len(p_NY) else "The"
    return as_html(f"{first} test models of {training.name}.", models)


def _most_probable_first(classes: Sequence[str], p_Y: np.ndarray) -> list[Prediction]:
    return [
        Prediction(classes[y], classes[y], float(p_Y[y])) for y in np.argsort(-p_Y, kind="stable")
    ]


def embeddings(training: Training) -> str:
    """A map of the test models."""
    if training.attributes:
        return ""
    answered = training.answered
    if answered is None:
        return _NOT_KEPT
    if not len(answered.vectors):
        return "<p>This method represents no models.</p>"
    shown = sample_for_map(len(answered.vectors))
    try:
        points_M2 = layout_2d(answered.vectors[shown])
    except ProbexError as error:
        return f"<p>{escaped(str(error))}</p>"
    about = list(_about(answered))
    points = [
        MapPoint(float(x), float(y), *about[place])
        for (x, y), place in zip(points_M2, shown, strict=True)
    ]
    if not answered.task.exclusive:
        points.sort(key=lambda point: point.group)
    coloured_by = "class" if answered.task.exclusive else "number of wrong classes"
    if is_number(answered):
        coloured_by = "third of the true numbers"
    some = f"A sample of {len(shown):,} of the" if len(shown) < len(about) else "The"
    return interactive_map(
        points,
        caption=f"{some} {len(about):,} test models of {training.name}, close together where "
        f"their representations are similar; coloured by {coloured_by}.",
        emphasised={"ring": "of a held-out class"},
    )


def _about(answered: Predictions) -> Iterator[tuple[str, str, str]]:
    """Title, group and emphasis of each model."""
    if is_number(answered):
        yield from about_numbers(answered)
        return
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
            verdict = "predicted correctly" if said in labels else f"predicted as {said}"
            yield f"{name}: {truth}, {verdict}", truth, ""


def split_rows(trainings: Sequence[Training]) -> list[dict[str, str]]:
    """The number of models by split, a row per tree."""
    by_tree: dict[str, Mapping[str, Any]] = {}
    for training in trainings:
        if "n_models" in training.metrics:
            by_tree.setdefault(training.metrics["tree"], training.metrics)
    splits = [s for s in SPLITS if any(s in found["n_models"] for found in by_tree.values())]
    return [
        {"tree": tree}
        | {split: str(found["n_models"].get(split, 0)) for split in splits}
        | {"store hash": Html(f"<code>{escaped(found['store_hash'])}</code>")}
        for tree, found in by_tree.items()
    ]
