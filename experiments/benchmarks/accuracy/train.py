"""Trains what is missing, a run after the other; of each only a record is kept."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import probex_jax as px
from experiments import cli, steps
from experiments.benchmarks.accuracy import plan
from probex_jax.experts import Expert
from probex_jax.experts.chance import chance_of
from probex_jax.files import one_writer, read_json, write_json


def train_missing(zoos: Sequence[Path], workdir: Path, stages: int | None = None) -> None:
    """Trains until all runs on the zoos, of so many stages, have their records."""
    with one_writer(workdir), cli.progress(0, "training", "run") as bar:
        # Planned anew after each: another zoo may be there by then.
        while missing := [
            run for run in plan.plan(zoos, stages) if _finished(workdir, run) is None
        ]:
            bar.reset(len(missing))
            bar.set_postfix_str(missing[0].folder)
            _train(workdir, missing[0])


def records(zoos: Sequence[Path], workdir: Path) -> list[tuple[plan.Run, Mapping[str, Any]]]:
    """What is finished."""
    found = [(run, _finished(workdir, run)) for run in plan.plan(zoos)]
    return [(run, kept) for run, kept in found if kept is not None]


def _finished(workdir: Path, run: plan.Run) -> Mapping[str, Any] | None:
    """The record of a run with the settings that its method has now."""
    path, settings = record(workdir, run), json.loads(json.dumps(run.method.settings))
    kept = read_json(path) if path.exists() else None
    return kept if kept is None or kept.get("settings", settings) == settings else None


def record(workdir: Path, run: plan.Run) -> Path:
    """The record of a run; it appears when the run is finished."""
    return workdir / f"{run.folder}.json"


def _train(workdir: Path, run: plan.Run) -> None:
    """Trains, chooses on validation, and tests what was chosen; resumes a run that was killed."""
    folder = workdir / run.folder
    store = steps.pack(run.zoo / run.tree, folder.parent / "store").store
    config = run.method.settings
    if run.method.screen is not None:
        config["layers"] = _best_layers(workdir, run, run.method.screen, store)
    start = time.perf_counter()
    metrics = steps.train(config, folder, store)
    found = {
        "seconds": time.perf_counter() - start,
        **_scores(metrics),
        **{name: metrics.get(name) for name in ("layers", "val_accuracy_by_layer")},
        "val_accuracies": _val_accuracies(folder),
        "versions": metrics["versions"],
        "settings": run.method.settings,
        "store_hash": store.hash,
    }
    write_json(record(workdir, run), found)
    shutil.rmtree(folder)


def _best_layers(
    workdir: Path, run: plan.Run, screen: plan.Method, store: px.LayerStore
) -> list[str]:
    """Those matrices where another method was best without the test models."""
    found = read_json(record(workdir, plan.Run(run.zoo, run.tree, screen)))
    accuracies = found["val_accuracy_by_layer"]
    matrices = (set(store.layers) - set(store.vectors)) & set(accuracies)
    return sorted(matrices, key=lambda name: (-accuracies[name], name))[: run.method.layers]


def _scores(metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Accuracy and chance, by what was tested."""
    scores = {"test": metrics["test_accuracy"]}
    if "zero_shot" in metrics:
        zero_shot = metrics["zero_shot"]
        scores |= {"held_out": zero_shot["among_held_out"], "all": zero_shot["among_all"]}
    return {
        "accuracy": {what: score["value"] for what, score in scores.items()},
        "chance": {what: chance_of(score) for what, score in scores.items()},
    }


def _val_accuracies(folder: Path) -> list[float] | None:
    """At every evaluation of the chosen layer; None of a committee, or without gradient descent."""
    if not (folder / "expert").exists():
        return None
    return Expert.load(folder).card.figures.get("val_accuracies")
