"""The report of a run: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probex_jax.experts import ZeroShot
from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.reports.figures import short_name
from probex_jax.reports.html import Html, escaped, html_table, page
from probex_jax.reports.predictions import LabelledDescription, as_html, of_description
from probex_jax.reports.told import is_number
from probex_jax.reports.training import (
    Training,
    beside_the_truth,
    by_layer,
    calibration,
    confusion,
    embeddings,
    split_rows,
    told_by_weights,
)
from probex_jax.search import Measured

_MAX_COMMAND = 4000  # characters
_MAX_ITEMS = 40  # of a setting that is a list


@dataclass(frozen=True)
class Cost:
    """Time and memory of a step of a run.

    Args:
      step: its name.
      seconds: wall-clock time.
      peak_bytes: the peak memory of the process during the step; 0 if unknown.
      resumed: whether an earlier run started it; the cost of that run is not included.
      parallel: whether it ran at the same time as the other parallel steps.
    """

    step: str
    seconds: float
    peak_bytes: int
    resumed: bool = False
    parallel: bool = False


@dataclass(frozen=True)
class Run:
    """The content of a report.

    Args:
      title: of the report.
      about: name to text, such as the command and the machine.
      trainings: all of them; the first one of each tree is shown in detail.
      measured: tree to the results of further tasks.
      described: models that were described without their labels; if there are none, the first test
        models of each tree are shown instead.
      costs: of each step.
    """

    title: str
    about: Mapping[str, str]
    trainings: Sequence[Training]
    measured: Mapping[str, Sequence[Measured]]
    described: Sequence[LabelledDescription]
    costs: Sequence[Cost]


def report(run: Run) -> str:
    """The report as one self-contained HTML document.

    Args:
      run: its content; names in it may be text of strangers.

    Returns:
      The document.

    Example:
      >>> text = report(Run("Nothing", {"command": "<none>"}, (), {}, (), (Cost("all", 2.0, 0),)))
      >>> "&lt;none&gt;" in text, "http://" in text
      (True, False)
    """
    first = list({t.metrics["tree"]: t for t in reversed(run.trainings)}.values())[::-1]
    sections = {
        "What was run": _about(run),
        "Results": _results(run),
        "Attributes": _each(first, told_by_weights),
        "Accuracy by layer": by_layer(run.trainings),
        "Calibration": _each(first, calibration, side_by_side=True),
        "Confusion by class": _each(first, confusion),
        "Map of embeddings": _each(first, embeddings),
        "Predictions beside the truth": _described(run) or _each(first, beside_the_truth),
        "Cost of each step": _costs(run.costs),
    }
    told = {heading: text for heading, text in sections.items() if text}
    contents = "".join(
        f'<li><a href="#s{number}">{heading}</a></li>' for number, heading in enumerate(told)
    )
    body = "".join(
        f'<section id="s{number}"><h2>{heading}</h2>{text}</section>\n'
        for number, (heading, text) in enumerate(told.items())
    )
    return page(
        run.title,
        f"<main><h1>{escaped(run.title)}</h1>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n{body}</main>',
    )


def _described(run: Run) -> str:
    if not run.described:
        return ""
    n_right = sum(model.description.tree == model.tree for model in run.described)
    about = f"The tree is right for {n_right} of {len(run.described)}."
    return as_html(about, map(of_description, run.described))


def _about(run: Run) -> str:
    rows = [
        {"": name, " ": Html(f"<code>{escaped(text, _MAX_COMMAND)}</code>")}
        for name, text in run.about.items()
    ]
    versions: Mapping[str, str] = next((t.metrics["versions"] for t in run.trainings), {})
    rows += [{"": "versions", " ": ", ".join(f"{k} {v}" for k, v in versions.items())}]
    parts = [html_table(rows), html_table(split_rows(run.trainings), caption="Models by split")]
    for training in run.trainings:
        settings = [{"setting": name, "value": value} for name, value in _flat(training.settings)]
        parts.append(
            f"<details><summary>Settings of {escaped(training.name)}</summary>"
            f"{html_table(settings)}</details>"
        )
    return "".join(parts)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of nested settings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(map(str, value[:_MAX_ITEMS]))
        rest = len(value) - _MAX_ITEMS
        yield name, f"{shown} and {rest} more" if rest > 0 else shown
    else:
        yield name, str(value)


def _results(run: Run) -> str:
    rows = [row for training in run.trainings for row in _result_rows(training)]
    further = [
        {"figure": f"{tree}: {m.task}: {m.what}, {m.n_classes} {m.classes}"}
        | _score(vars(m.score), m.chance)
        for tree, figures in run.measured.items()
        for m in figures
    ]
    about = (
        "<p>On test models, on which nothing was chosen. Intervals are 95 % bootstrap intervals "
        "over the models, or over the classes where a figure is per class; where all answers are "
        "right, they are exact (except for AUC). The line runs from 0 to 1; dashes mark chance, "
        "for an accuracy that of always giving the most common answer. A figure whose interval "
        "reaches chance is not clearly above it.</p>"
    )
    tables = html_table(rows) + (html_table(further, caption="Further tasks") if further else "")
    return about + tables if rows else ""


def _result_rows(training: Training) -> Iterator[dict[str, Any]]:
    metrics = training.metrics
    layers = metrics.get("layers", {}).get("expert", ())
    reads = short_name(layers[0]) if len(layers) == 1 else f"{len(layers) or 'all'} layers"
    if training.attributes:
        for name, each in metrics["attributes"].items():
            if each["told"]:
                score = each["test_accuracy"]
                yield {"figure": name, **_score(score, chance_of(score)), "reads": reads}
        return
    chance = chance_of(metrics["test_accuracy"])
    if chance is None and training.answered is not None:
        chance = training.answered.chance
    accuracy = _score(metrics["test_accuracy"], chance)
    what = "R²" if is_number(training.answered) else "accuracy"
    yield {"figure": f"{training.name}: {what}", **accuracy, "reads": reads}
    if "test_auc" in metrics:
        area = _score(metrics["test_auc"], chance_of(metrics["test_auc"]))
        yield {"figure": f"{training.name}: macro AUC", **area, "reads": reads}
    if "zero_shot" in metrics:
        found = ZeroShot.from_json(metrics["zero_shot"])
        for what, score, count in (
            (f"zero-shot among {found.n_held_out}", found.among_held_out, found.n_held_out),
            (f"zero-shot among all {found.n_all}", found.among_all, found.n_all),
            (f"seen classes among all {found.n_all}", found.seen_among_all, found.n_all),
        ):
            if score is None:  # written by an earlier version
                continue
            figures = _score(vars(score), score.chance or 1 / count)
            yield {"figure": f"{training.name}: {what}", **figures, "reads": reads}


def _score(score: Mapping[str, Any], chance: float | None) -> dict[str, Any]:
    value, low, high = score["value"], score["low"], score["high"]
    return {
        "value": f"{value:.3f}",
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "on a line": Html(_interval(value, low, high, chance)),
        "chance": _beside(score, chance),
        "models": str(score["n_models"]),
    }


def _interval(value: float, low: float, high: float, chance: float | None) -> str:
    """A figure between 0 and 1 with its interval, as high as a line of text.

    By matplotlib each would be ten times as large.
    """
    x, x0, x1 = (4 + 132 * min(max(at, 0.0), 1.0) for at in (value, low, high))
    dashes = ""
    if chance is not None:
        at = 4 + 132 * chance
        dashes = f'<path d="M{at:.1f} 0V16" stroke="#000" stroke-dasharray="2 2"/>'
    return (
        '<svg viewBox="0 0 140 16" width="140" role="img"><title>'
        f"{value:.3f}, interval {low:.3f} to {high:.3f}, on a line from 0 to 1</title>"
        f'<path d="M4 12H136M4 9V15M136 9V15" stroke="#999" fill="none"/>{dashes}'
        f'<path d="M{x0:.1f} 8H{x1:.1f}M{x0:.1f} 4V12M{x1:.1f} 4V12" stroke="#0072B2" '
        f'stroke-width="2" fill="none"/><circle cx="{x:.1f}" cy="8" r="3.5" fill="#0072B2"/></svg>'
    )


def _beside(score: Mapping[str, Any], chance: float | None) -> str:
    if chance is None:
        return ""
    short = shortfall({**score, "chance": chance})
    return f"{chance:.3f} ({short} it)" if short else f"{chance:.3f}"


def _each(
    trainings: Sequence[Training], section: Callable[[Training], str], *, side_by_side: bool = False
) -> str:
    """A section with a part for each training."""
    found = ((training.name, section(training)) for training in trainings)
    parts = "".join(f"<div><h3>{escaped(name)}</h3>{part}</div>" for name, part in found if part)
    return f'<div class="side">{parts}</div>' if side_by_side and parts else parts


def _costs(costs: Sequence[Cost]) -> str:
    if not costs:
        return ""
    longest = max(cost.seconds for cost in costs) or 1.0
    is_resumed = any(cost.resumed for cost in costs)
    rows = [
        {
            "step": cost.step,
            "seconds": f"{cost.seconds:.1f}",
            "peak memory, MiB": f"{cost.peak_bytes / 2**20:.0f}" if cost.peak_bytes else "",
            "of the longest": Html(f'<meter value="{cost.seconds / longest:.3f}"></meter>'),
        }
        | ({"started": "by an earlier run" if cost.resumed else ""} if is_resumed else {})
        for cost in costs
    ]
    total = sum(cost.seconds for cost in costs if not cost.parallel)
    total += max((cost.seconds for cost in costs if cost.parallel), default=0)
    return (
        f"<p>{total:.0f} seconds of wall-clock time in total. Memory is the peak of the process "
        "during the step (on systems other than Linux, up to its end). The time that an earlier "
        f"run spent on a resumed step is not included.</p>{html_table(rows)}"
    )
