"""The results of the accuracy experiment: tables in Markdown, a figure, and all figures as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.accuracy import plan
from probex_jax.fitting import mean_score
from probex_jax.reports import accuracy_by_layer, table

Found = Sequence[tuple[plan.Run, Mapping[str, Any]]]

WHAT = {"test": "test", "held_out": "zero-shot among held-out", "all": "zero-shot among all"}


def write(found: Found, folder: Path) -> str:
    """Writes accuracy.md, accuracy.json and accuracy_by_layer.png; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    main = [(run, answers) for run, answers in found if ": " not in run.method]
    variants = [(run, answers) for run, answers in found if ": " in run.method]
    lines = [
        "# Accuracy",
        "",
        "Written by `python -m experiments.benchmarks.accuracy`; what it means is in "
        "[README.md](README.md).",
    ]
    for tree in plan.TREES:
        of_tree = [(run, answers) for run, answers in main if run.tree == tree]
        for what in _right_of(of_tree[0][1]):
            lines += ["", f"## {tree}, {WHAT[what]}", "", table(_rows(of_tree, what))]
    lines += ["", "## What each part is worth", "", _of_variants(variants)]
    first = found[0][1]
    hashes = {run.tree: answers["store_hash"] for run, answers in main}
    lines += [
        "",
        f"Versions: {', '.join(f'{name} {v}' for name, v in first['versions'].items())}. "
        f"Seeds: {', '.join(map(str, plan.SEEDS))}. Hashes of the stores: "
        f"{', '.join(f'{tree} {value[:16]}' for tree, value in hashes.items())}.",
        "",
    ]
    text = "\n".join(lines)
    (folder / "accuracy.md").write_text(text)
    (folder / "accuracy.json").write_text(_as_json(found))
    chance = {run.tree: answers.get("val_chance") for run, answers in main}
    accuracy_by_layer(_by_layer(main), folder / "accuracy_by_layer.png", chance)
    return text


def _as_json(found: Found) -> str:
    """A run a line."""
    runs = [f"{json.dumps(run.folder)}: {json.dumps(dict(answers))}" for run, answers in found]
    return "{\n" + ",\n".join(runs) + "\n}\n"


def _rows(of_tree: Found, what: str) -> list[dict[str, Any]]:
    """A method a row: accuracy over its seeds, and its error less that of MVProbe as published."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for run, answers in of_tree:
        by_method.setdefault(run.method, []).append(answers)
    published_N = _per_model(by_method[plan.PUBLISHED], what)
    return [
        _row(method, by_method[method], what, published_N)
        for method in sorted(by_method, key=lambda m: _per_model(by_method[m], what).mean())
    ]


def _row(
    method: str, answers: Sequence[Mapping[str, Any]], what: str, published_N: np.ndarray
) -> dict[str, Any]:
    per_seed = [float(np.mean(_right_of(a)[what])) for a in answers]
    per_model_N = _per_model(answers, what)
    gain = mean_score(per_model_N - published_N)
    error, published = 1 - per_model_N.mean(), 1 - published_N.mean()
    # Held-out classes are told by an expert of its own.
    kept = "expert" if what == "test" else "expert_val_holdout"
    layers = {len(a["layers"][kept]) for a in answers if a["layers"]}
    parameters = [a["parameters"] for a in answers if a["parameters"] and what == "test"]
    return {
        "method": method,
        "seeds": len(answers),
        "accuracy": float(np.mean(per_seed)),
        "std": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else "",
        "error / MVProbe's": float(error / published),
        "gain on MVProbe, paired 95 %": f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
        "chance": chance if (chance := answers[0].get("chance", {}).get(what)) else "",
        "layers": ", ".join(map(str, sorted(layers))) or "all",
        "parameters": f"{max(parameters):,}" if parameters else "",
        "s": round(max(a["seconds"] for a in answers)),
    }


def _of_variants(variants: Found) -> str:
    """Test accuracy of ours and of centred MVProbe without one of their parts, a tree a column."""
    names = dict.fromkeys(run.method for run, _ in variants)
    rows = []
    for name in names:
        row: dict[str, Any] = {"variant": name, **dict.fromkeys(plan.CLASSIFIERS, "")}
        for run, answers in variants:
            if run.method == name:
                row[run.tree] = f"{np.mean(_right_of(answers)['test']):.4f}"
        rows.append(row)
    return table(rows)


def _by_layer(main: Found) -> dict[str, dict[str, dict[str, float]]]:
    """Validation accuracy with the first seed, of the methods that have layers."""
    shown = ("ProbeX", plan.PUBLISHED, plan.OURS)
    return {
        tree: {
            run.method: answers["val_accuracy_by_layer"]
            for method in shown
            for run, answers in main
            if (run.tree, run.method, run.seed) == (tree, method, plan.SEEDS[0])
        }
        for tree in plan.CLASSIFIERS
    }


def _per_model(answers: Sequence[Mapping[str, Any]], what: str) -> np.ndarray:
    """Mean over the seeds of what was told rightly of each test model."""
    return np.mean([_right_of(a)[what] for a in answers], axis=0)


def _right_of(answers: Mapping[str, Any]) -> dict[str, list[float]]:
    return answers["right"]
