"""The baselines of `evaluate`: their progress bar, table and words."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.steps import AUC, Row
from probex_jax.fitting import Score
from probex_jax.search import Baselines, Compared, Subject, compare
from probex_jax.search.baselines import METHODS

# Figures over repeats, and their names in metrics.json.
_OVER_REPEATS = {"accuracy": "accuracy", AUC: "auc"}


def measure(subject: Subject, workdir: Path) -> Baselines:
    """The expert beside scikit-learn's methods."""
    with cli.progress(len(METHODS), "baselines", "method") as bar:
        return compare(subject, workdir, on_method=lambda name: bar.update())


def row(found: Compared) -> Row:
    """A method among the baselines, or the expert beside them."""
    return {
        "method": found.method,
        "accuracy": f"{found.accuracy.value:.3f}",
        "95 % interval": f"{found.accuracy.low:.3f} to {found.accuracy.high:.3f}",
        "chance": f"{found.accuracy.chance:.3f}",
        AUC: "" if found.auc is None else f"{found.auc.value:.3f}",
        "log loss": f"{found.log_loss:.3f}",
        "setting": found.setting,
        "seconds": "" if found.seconds is None else f"{found.seconds:.1f}",
    }


def rows_over_repeats(found: Mapping[str, Any]) -> list[Row]:
    """A row of each method, ours first: mean and standard deviation of what repeats measured."""
    kept = [metrics["baselines"]["methods"] for metrics in found.values()]
    of_methods = {"ours": [metrics["classify"] for metrics in found.values()]}
    common = [name for name in METHODS if all(name in methods for methods in kept)]
    of_methods |= {name: [methods[name] for methods in kept] for name in common}
    return [
        {
            "method": name,
            **{what: _mean([each.get(key) for each in of]) for what, key in _OVER_REPEATS.items()},
        }
        for name, of in of_methods.items()
    ]


def _mean(scores: Sequence[Mapping[str, float] | None]) -> str:
    values = [score["value"] for score in scores if score]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def in_words(found: Baselines) -> list[str]:
    """Which baselines are better than the expert and by how much, and what was not run."""
    return [
        _better("accuracy", found.ours.accuracy, {m.method: m.accuracy for m in found.others}),
        _better("AUC", found.ours.auc, {m.method: m.auc for m in found.others}),
        *(f"not run: {method}: {reason}" for method, reason in found.left_out.items()),
        f"reading all tensors, and their inner products: {found.reading_s:.1f} seconds",
    ]


def _better(what: str, ours: Score | None, others: Mapping[str, Score | None]) -> str:
    if ours is None:
        return f"{what}: none, since no class can be told from the rest"
    better = {name: score for name, score in others.items() if score and score.value > ours.value}
    listed = (
        f"{name} ({score.value:.3f}, {'beyond' if score.value > ours.high else 'within'} our "
        "interval)"
        for name, score in better.items()
    )
    return f"higher {what} than ours, {ours.value:.3f}: {', '.join(listed) or 'no baseline'}"
