r"""Trains every method on every tree: the tables and figures of results/.

It takes hours. Run the same command again to resume. To use two machines, give each other --trees;
the last one to end, or a further run, writes the results.

Example:
  python -m experiments.benchmarks.accuracy --stores=out/stores \
    --workdir=out/accuracy --results=results
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import probex_jax as px
from experiments import cli, steps
from experiments.benchmarks.accuracy import plan, report
from probex_jax.experts import Expert, evaluate, load_experts
from probex_jax.experts.alignment import text_logits
from probex_jax.experts.chance import chance_of
from probex_jax.files import write_json
from probex_jax.sweeps.statnn import statnn_answers

_STORES = flags.DEFINE_string(
    "stores", None, "Folder with a layer store for each tree.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the experts.", required=True)
_RESULTS = flags.DEFINE_string("results", None, "Folder for tables and figures.", required=True)
_TREES = flags.DEFINE_list("trees", list(plan.TREES), "Trees to train on now.")


def main() -> None:
    workdir = Path(_WORKDIR.value)
    runs = list(plan.plan())
    todo = [run for run in runs if run.tree in _TREES.value and not _answers(workdir, run).exists()]
    with cli.progress(len(todo), "training", "run") as bar:
        for run in todo:
            bar.set_postfix_str(run.folder, refresh=True)
            _run(workdir, run)
            bar.update()
    missing = [run.folder for run in runs if not _answers(workdir, run).exists()]
    if missing:
        print(f"{len(missing)} runs are missing, the first is {missing[0]}: no results yet")
        return
    found = [(run, json.loads(_answers(workdir, run).read_text())) for run in runs]
    print(report.write(found, Path(_RESULTS.value)))


def _answers(workdir: Path, run: plan.Run) -> Path:
    return workdir / run.folder / "answers.json"


def _run(workdir: Path, run: plan.Run) -> None:
    """Trains, chooses on validation, and tests what was chosen."""
    store = px.LayerStore.open(Path(_STORES.value) / run.tree)
    if run.models is not None:
        store = store.limited(run.models)
    config = dict(run.config)
    if run.finalists:
        config["layers"] = _finalists(workdir, run)
    start = time.perf_counter()
    metrics = steps.train(config, workdir / run.folder, store)
    answers: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "layers": metrics.get("layers"),
        "val_accuracy_by_layer": metrics.get("val_accuracy_by_layer", {}),
        "val_chance": metrics.get("val_chance"),
        "chance": _chance(metrics),
        "versions": metrics["versions"],
        "store_hash": store.hash,
        "parameters": _parameters(workdir / run.folder),
        "right": _right(workdir / run.folder, run, store),
    }
    write_json(_answers(workdir, run), answers)


def _chance(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """By what was tested, as `right`; a work directory of an earlier version says none."""
    scores = {"test": metrics["test_accuracy"]}
    if "zero_shot" in metrics:
        zero_shot = metrics["zero_shot"]
        scores |= {"held_out": zero_shot["among_held_out"], "all": zero_shot["among_all"]}
    return {what: chance_of(score) for what, score in scores.items()}


def _finalists(workdir: Path, run: plan.Run) -> list[str]:
    """The layers that were best with the first seed, best first; of a variant, the best alone."""
    first = workdir / plan.Run(run.tree, run.finalists, plan.SEEDS[0], {}).folder
    accuracies = json.loads((first / "metrics.json").read_text())["val_accuracy_by_layer"]
    count = 1
    if ": " not in run.method:
        count = plan.FINALISTS if run.method == run.finalists else plan.CANDIDATES
    return sorted(accuracies, key=lambda layer: -accuracies[layer])[:count]


def _parameters(folder: Path) -> int | None:
    if not (folder / "expert").is_dir():
        return None
    params = [member.variables["params"] for member in Expert.load(folder).members]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _right(folder: Path, run: plan.Run, store: px.LayerStore) -> dict[str, list[float]]:
    """Of each test model, the share that was told rightly."""
    if run.config["encoder"]["name"] == "statnn":
        answers = statnn_answers(
            store, n_trees=run.config["encoder"]["n_trees"], seed=run.config["recipe"]["seed"]
        )
        return {"test": _entries(answers, store.targets("test"))}
    experts = load_experts(folder)
    _, logits_NY = evaluate(experts["val"], store)
    if run.tree != plan.LORAS:
        return {"test": _entries(logits_NY, store.targets("test"))}
    seen, held_out = store.seen_classes, store.held_out_classes
    unseen_NY = text_logits(experts["val_holdout"], store, "test_holdout", (*held_out, *seen))
    labels_N = store.class_indices("test_holdout", held_out)
    among_held_out = unseen_NY[:, : len(held_out)].argmax(1) == labels_N
    return {
        "test": (logits_NY.argmax(1) == store.class_indices("test", seen)).astype(float).tolist(),
        "held_out": among_held_out.astype(float).tolist(),
        "all": (unseen_NY.argmax(1) == labels_N).astype(float).tolist(),
    }


def _entries(logits_NY: np.ndarray, targets_NY: np.ndarray) -> list[float]:
    return np.mean((logits_NY > 0) == (targets_NY > 0.5), axis=1).tolist()


if __name__ == "__main__":
    cli.run(main)
