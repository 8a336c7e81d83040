"""The results of the accuracy experiment: tables in Markdown, and all records as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    for tree in plan.TREES:
        of_tree = [(run, record) for run, record in found if run.tree == tree and run.method.shown]
        for what in dict.fromkeys(what for _, record in of_tree for what in record["accuracy"]):
            lines += ["", f"## {tree}, {WHAT[what]}", "", table(_rows(of_tree, what))]
    versions = found[-1][1]["versions"].items()
    lines += ["", f"Versions: {', '.join(f'{name} {value}' for name, value in versions)}.", ""]
    text = "\n".join(lines)
    (folder / "accuracy.md").write_text(text)
    records = (f"{json.dumps(run.folder)}: {json.dumps(dict(record))}" for run, record in found)
    (folder / "accuracy.json").write_text("{\n" + ",\n".join(records) + "\n}\n")
    return text


def _rows(of_tree: Found, what: str) -> list[dict[str, Any]]:
    """A method a row, the most accurate last, and chance among them."""
    zoos = list(dict.fromkeys(run.zoo.name for run, _ in of_tree))
    accuracies: dict[str, dict[str, float]] = {CHANCE: {}}
    seconds: dict[str, list[float]] = {CHANCE: []}
    for run, record in of_tree:
        accuracies.setdefault(run.method.name, {})[run.zoo.name] = record["accuracy"][what]
        accuracies[CHANCE][run.zoo.name] = record["chance"][what]
        seconds.setdefault(run.method.name, []).append(record["seconds"])
    published = accuracies.get(plan.PUBLISHED, {})
    return [
        {
            "method": method,
            **{zoo: of_zoos.get(zoo, "") for zoo in zoos},
            "zoos": len(of_zoos),
            "mean": float(np.mean(list(of_zoos.values()))),
            "std": float(np.std(list(of_zoos.values()), ddof=1)) if len(of_zoos) > 1 else "",
            f"error / {plan.PUBLISHED}'s": ""
            if method in (CHANCE, plan.PUBLISHED)
            else _ratio(of_zoos, published),
            "s": round(float(np.mean(seconds[method]))) if seconds[method] else "",
        }
        for method, of_zoos in sorted(
            accuracies.items(), key=lambda item: np.mean(list(item[1].values()))
        )
    ]


def _ratio(of_zoos: Mapping[str, float], published: Mapping[str, float]) -> str:
    """That of the mean errors, with the spread of the zoos' own."""
    errors = [(1 - of_zoos[zoo], 1 - published[zoo]) for zoo in of_zoos if zoo in published]
    if not sum(theirs for _, theirs in errors):
        return ""
    mine, theirs = np.mean(errors, axis=0)
    each = [mine / theirs for mine, theirs in errors if theirs]
    spread = f" ± {np.std(each, ddof=1):.2f}" if len(each) > 1 else ""
    return f"{mine / theirs:.2f}{spread}"
