"""Evaluates a trained expert on a split of a store.

Example:
  python -m experiments.evaluate --experts=out/probex --store=out/stores/MiniSupViT
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

import probex_jax as px
from experiments import cli
from probex_jax.experts import evaluate, versions
from probex_jax.files import write_json

_EXPERTS = flags.DEFINE_string(
    "experts", None, "Work directory of a training, or one expert.", required=True
)
_STORE = flags.DEFINE_string("store", None, "Layer store to evaluate on.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Split of the store.")
_TASKS = flags.DEFINE_list("tasks", ["classify"], "What to measure: classify.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where metrics.json goes; EXPERTS/evaluation.")


def main() -> None:
    unknown = set(_TASKS.value) - {"classify"}
    if unknown:
        raise px.ProbexError(f"--tasks: {sorted(unknown)[0]!r} is not one of classify")
    expert = px.Expert.load(_EXPERTS.value)
    store = px.LayerStore.open(_STORE.value)
    score, logits = evaluate(expert, store, _SPLIT.value)
    right_Y = np.mean((logits > 0) == (store.targets(_SPLIT.value) > 0.5), axis=0)
    by_class = dict(zip(store.classes, right_Y.tolist(), strict=True))
    workdir = Path(_WORKDIR.value or f"{_EXPERTS.value}/evaluation")
    workdir.mkdir(parents=True, exist_ok=True)
    metrics = {
        "tree": store.tree,
        "layer": expert.card["layer"],
        "split": _SPLIT.value,
        "store_hash": store.hash,
        "classify": {"accuracy": dataclasses.asdict(score), "accuracy_by_class": by_class},
        "versions": versions(),
    }
    write_json(workdir / "metrics.json", metrics)
    print(cli.table([{"class": name, "accuracy": value} for name, value in by_class.items()]))
    print()
    row = {"tree": store.tree, "layer": expert.card["layer"], "split": _SPLIT.value}
    print(cli.table([{**row, "accuracy, 95 % interval": str(score), "models": score.n_models}]))


if __name__ == "__main__":
    cli.run(main)
