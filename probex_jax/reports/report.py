"""The report of a run: one HTML file that tells what was done and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probex_jax.experts import ZeroShot
from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.reports.charts import PATTERNS, fill, interval
from probex_jax.reports.described import described_models
from probex_jax.reports.figures import short_name
from probex_jax.reports.hidden import HiddenModel
from probex_jax.reports.html import Html, escaped, html_table, page
from probex_jax.reports.layers import by_layer
from probex_jax.reports.training import (
    Training,
    beside_the_truth,
    calibration,
    confusion,
    embeddings,
    split_rows,
)
from probex_jax.search import Measured

# Characters of a command that are shown.
_LONGEST = 4000
# Items of a setting that is a list.
_LISTED = 40


@dataclass(frozen=True)
class Cost:
    """What a step of a run cost.

    Args:
      step: its name.
      seconds: by the wall clock.
      peak_bytes: the most memory that the process held during it; 0 where not known.
      resumed: whether an earlier run began it, whose cost is not in these figures.
      parallel: whether it ran beside the other steps that say so.
    """

    step: str
    seconds: float
    peak_bytes: int
    resumed: bool = False
    parallel: bool = False


@dataclass(frozen=True)
class Run:
    """All that a report tells.

    Args:
      title: of the report.
      about: what was run, such as the command and the machine: name to text.
      trainings: what was trained; the first one of a tree is drawn in detail.
      measured: figures of further tasks, by tree.
      hidden: models that were described without their labels; where there are none, the first test
        models of each tree are shown beside the truth.
      costs: of each step.
    """

    title: str
    about: Mapping[str, str]
    trainings: Sequence[Training]
    measured: Mapping[str, Sequence[Measured]]
    hidden: Sequence[HiddenModel]
    costs: Sequence[Cost]


def report(run: Run) -> str:
    """A whole HTML document, to be kept, printed or sent: it needs nothing else.

    Args:
      run: what to tell; names in it may be text of strangers.

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
        "Accuracy by layer": by_layer(run.trainings),
        "Calibration": _each(first, calibration, side_by_side=True),
        "Confusion by class": _each(first, confusion),
        "Map of embeddings": _each(first, embeddings),
        "Described models beside the truth": (
            described_models(run.hidden) if run.hidden else _each(first, beside_the_truth)
        ),
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
        f"{PATTERNS}<main><h1>{escaped(run.title)}</h1>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n{body}</main>',
    )


def _about(run: Run) -> str:
    rows = [
        {"": name, " ": Html(f"<code>{escaped(text, _LONGEST)}</code>")}
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
    """Names and values of nested settings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(map(str, value[:_LISTED]))
        rest = len(value) - _LISTED
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
        "<p>On test models, which no choice has seen. Intervals are 95 % bootstrap intervals over "
        "the models, or over the classes where classes are what is asked; where all are right, "
        "exact ones (but for AUC). The line runs from 0 to 1, the dashes on it are chance: of an "
        "accuracy, what always giving the commonest answer has. A figure whose interval reaches "
        "down to chance is not clearly above it.</p>"
    )
    tables = html_table(rows) + (html_table(further, caption="Further tasks") if further else "")
    return about + tables if rows else ""


def _result_rows(training: Training) -> Iterator[dict[str, Any]]:
    metrics = training.metrics
    layers = metrics.get("layers", {}).get("expert", ())
    reads = short_name(layers[0]) if len(layers) == 1 else f"{len(layers) or 'all'} layers"
    chance = chance_of(metrics["test_accuracy"])
    if chance is None and training.answered is not None:
        chance = training.answered.chance
    accuracy = _score(metrics["test_accuracy"], chance)
    yield {"figure": f"{training.name}: accuracy", **accuracy, "reads": reads}
    if "zero_shot" in metrics:
        found = ZeroShot.from_json(metrics["zero_shot"])
        for what, score, count in (
            (f"zero-shot among {found.n_held_out}", found.among_held_out, found.n_held_out),
            (f"zero-shot among all {found.n_all}", found.among_all, found.n_all),
        ):
            figures = _score(vars(score), score.chance or 1 / count)
            yield {"figure": f"{training.name}: {what}", **figures, "reads": reads}


def _score(score: Mapping[str, Any], chance: float | None) -> dict[str, Any]:
    value, low, high = score["value"], score["low"], score["high"]
    return {
        "value": f"{value:.3f}",
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "on a line": Html(interval(value, low, high, chance)),
        "chance": _beside(score, chance),
        "models": str(score["n_models"]),
    }


def _beside(score: Mapping[str, Any], chance: float | None) -> str:
    if chance is None:
        return ""
    short = shortfall({**score, "chance": chance})
    return f"{chance:.3f} ({short} it)" if short else f"{chance:.3f}"


def _each(
    trainings: Sequence[Training], section: Callable[[Training], str], *, side_by_side: bool = False
) -> str:
    """A section's part of each tree that has one."""
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
            "of the longest": Html(
                f'<svg viewBox="0 0 120 10" width="120" aria-hidden="true"><rect height="10" '
                f'width="{120 * cost.seconds / longest:.1f}" fill="{fill(0)}"/></svg>'
            ),
        }
        | ({"begun": "by an earlier run" if cost.resumed else ""} if is_resumed else {})
        for cost in costs
    ]
    total = sum(cost.seconds for cost in costs if not cost.parallel)
    total += max((cost.seconds for cost in costs if cost.parallel), default=0)
    return (
        f"<p>{total:.0f} seconds together, by the wall clock. Memory is the most that the process "
        "held during the step (where the system is not Linux, by its end). Of a step that was "
        f"resumed, what an earlier run spent on it is not counted.</p>{html_table(rows)}"
    )
