"""Trainings and evaluations over repeats of a split: a work directory each, mean and spread."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.files import read_json, write_json

Row = dict[str, object]


def write_summary(path: Path, about: Mapping[str, Any], found: Mapping[str, Any]) -> Any:
    """Writes the mean and spread of each figure over repeats.

    Args:
      path: the file.
      about: what else it says.
      found: repeat to its metrics.

    Returns:
      What was written: `repeats`, and under `figures` for each figure that all of them have `mean`,
      `standard_deviation`, the mean `chance`, and its `values` by repeat.
    """
    figures = {name: dict(_figures(metrics)) for name, metrics in found.items()}
    first = next(iter(figures.values()))
    common = [key for key in first if all(key in of for of in figures.values())]
    summary = {
        **about,
        "repeats": list(found),
        "figures": {key: _summed({n: of[key] for n, of in figures.items()}) for key in common},
    }
    write_json(path, summary)
    return summary


def _figures(metrics: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All scores in metrics, values with an interval, by their path."""
    if not isinstance(metrics, dict):
        return
    if {"value", "low", "high"} <= metrics.keys():
        yield prefix, metrics
        return
    for name, inside in metrics.items():
        yield from _figures(inside, f"{prefix}.{name}" if prefix else name)


def _summed(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    values = {name: score["value"] for name, score in scores.items()}
    chances = [score["chance"] for score in scores.values() if score.get("chance") is not None]
    return {
        "mean": statistics.fmean(values.values()),
        "standard_deviation": statistics.stdev(values.values()) if len(values) > 1 else None,
        "chance": statistics.fmean(chances) if len(chances) == len(values) else None,
        "values": values,
    }


def rows(summary: Mapping[str, Any], without: str = "\0") -> list[Row]:
    """A row of each figure but those that begin `without`."""
    return [
        {
            "figure": _in_words(name),
            "mean": f"{found['mean']:.3f}",
            "standard deviation": _shown(found["standard_deviation"]),
            "chance": _shown(found["chance"]),
            **{repeat: f"{value:.3f}" for repeat, value in found["values"].items()},
        }
        for name, found in summary["figures"].items()
        if not name.startswith(without)
    ]


def _in_words(figure: str) -> str:
    return figure.replace("_", " ").replace(".", ": ")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def not_above_chance(summary: Mapping[str, Any], without: str = "\0") -> list[str]:
    """A line for each figure whose mean is not above its chance by its spread over the repeats."""
    lines = []
    for name, found in summary["figures"].items():
        chance, mean, spread = found["chance"], found["mean"], found["standard_deviation"] or 0.0
        if chance is None or name.startswith(without) or mean > chance + spread:
            continue
        how = "not above" if mean <= chance else "not clearly above"
        lines.append(f"{_in_words(name)}: mean {mean:.3f} is {how} chance, {chance:.3f}")
    return lines


def of(workdir: Path) -> tuple[str, ...]:
    """The repeats in a work directory that `train` made of several; none in another one.

    Raises:
      ProbexError: if its metrics are damaged.
    """
    path = workdir / "metrics.json"
    about = read_json(path) if path.exists() else {}
    names = about.get("repeats", []) if isinstance(about, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProbexError(f"{path}: damaged; run train again")
    return tuple(names)
