"""The results of the accuracy experiment: tables in Markdown; figures and records as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import figures
from experiments.benchmarks.accuracy import plan
from probex_jax.reports import table

Found = Sequence[tuple[plan.Run, Mapping[str, Any]]]

CHANCE = "chance: the commonest answer"
WHAT = {"test": "test", "held_out": "zero-shot among held-out", "all": "zero-shot among all"}


def write(found: Found, folder: Path) -> str:
    """Writes accuracy.md and accuracy.json; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Accuracy",
        "",
        "Written by `python -m experiments.benchmarks.accuracy`; [README.md](README.md) has the "
        "protocol. A column a zoo, by the name of its folder, blank where not run; then mean "
        "and standard deviation between the zoos that were run. Errors are compared with those of "
        f"{plan.PUBLISHED} on the zoos that have both: the ratio of means ± the standard deviation "
        f"of ratios. On classes it has {plan.EPOCHS} epochs, where its paper has 500, unless the "
        "name says so.",
    ]
    summary: dict[str, dict[str, Any]] = {}
    for tree in plan.TREES:
        of_tree = [(run, record) for run, record in found if run.tree == tree and run.method.shown]
        for what in dict.fromkeys(what for _, record in of_tree for what in record["accuracy"]):
            methods = summary.setdefault(tree, {})[what] = _methods(of_tree, what)
            lines += ["", f"## {tree}, {WHAT[what]}", "", table(_rows(methods))]
    versions = found[-1][1]["versions"].items()
    lines += ["", f"Versions: {', '.join(f'{name} {value}' for name, value in versions)}.", ""]
    text = "\n".join(lines)
    (folder / "accuracy.md").write_text(text)
    (folder / "accuracy.json").write_text(_as_json(found, summary))
    return text


def _methods(of_tree: Found, what: str) -> dict[str, dict[str, Any]]:
    """By method, the most accurate last and chance among them: accuracy, error ratio, seconds."""
    accuracies: dict[str, dict[str, float]] = {CHANCE: {}}
    seconds: dict[str, list[float]] = {CHANCE: []}
    for run, record in of_tree:
        accuracies.setdefault(run.method.name, {})[run.zoo.name] = record["accuracy"][what]
        accuracies[CHANCE][run.zoo.name] = record["chance"][what]
        seconds.setdefault(run.method.name, []).append(record["seconds"])
    published = accuracies.get(plan.PUBLISHED, {})
    found: dict[str, dict[str, Any]] = {
        method: {
            "zoos": of_zoos,
            "accuracy": figures.spread([*of_zoos.values()]),
            "error_ratio": None
            if method in (CHANCE, plan.PUBLISHED)
            else _ratio(of_zoos, published),
            "seconds": figures.spread(seconds[method]) if seconds[method] else None,
        }
        for method, of_zoos in accuracies.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1]["accuracy"]["mean"]))


def _rows(methods: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    zoos = dict.fromkeys(zoo for method in methods.values() for zoo in method["zoos"])
    return [
        {
            "method": name,
            **{zoo: method["zoos"].get(zoo, "") for zoo in zoos},
            "zoos": method["accuracy"]["n"],
            "mean": method["accuracy"]["mean"],
            "std": "" if method["accuracy"]["sd"] is None else method["accuracy"]["sd"],
            f"error / {plan.PUBLISHED}'s": _of_ratio(method["error_ratio"]),
            "s": round(method["seconds"]["mean"]) if method["seconds"] else "",
        }
        for name, method in methods.items()
    ]


def _ratio(of_zoos: Mapping[str, float], published: Mapping[str, float]) -> dict[str, Any] | None:
    """That of the mean errors, with the spread of the zoos' own."""
    errors = [(1 - of_zoos[zoo], 1 - published[zoo]) for zoo in of_zoos if zoo in published]
    if not sum(theirs for _, theirs in errors):
        return None
    mine, theirs = np.mean(errors, axis=0)
    each = [mine / theirs for mine, theirs in errors if theirs]
    return {**figures.spread(each), "mean": float(mine / theirs)}


def _of_ratio(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['mean']:.2f}" + ("" if ratio["sd"] is None else f" ± {ratio['sd']:.2f}")


def _as_json(found: Found, summary: Mapping[str, Any]) -> str:
    """The figures, then all records, a run a line."""
    about = {**figures.about(), "figures": summary}
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in about.items()]
    runs = (f"{json.dumps(run.folder)}: {json.dumps(dict(record))}" for run, record in found)
    return "{\n" + ",\n".join([*parts, '"runs": {\n' + ",\n".join(runs)]) + "\n}\n}\n"
