r"""Trains every method on every tree of several zoos: the tables of results/.

It takes hours. Run the same command again to resume, or after another zoo was
built; --notrain writes the tables of what is finished. Give zoos other seeds by
python -m experiments.build_zoo --config.seed=N.

Example:
  python -m experiments.benchmarks.accuracy --zoos=out/zoos/0,out/zoos/1 \
    --workdir=out/accuracy --results=results
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

import probex_jax as px
from experiments import cli, steps
from experiments.benchmarks.accuracy import plan, report
from probex_jax.experts import Expert
from probex_jax.files import one_writer, read_json, write_json

_ZOOS = flags.DEFINE_list("zoos", None, "Folders of zoos, each of another seed.", required=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for stores, experts in training, and records.", required=True
)
_RESULTS = flags.DEFINE_string("results", None, "Folder for the tables.", required=True)
_TRAIN = flags.DEFINE_bool("train", True, "Whether to train what is missing.")


def main() -> None:
    workdir, zoos = Path(_WORKDIR.value), [Path(zoo) for zoo in _ZOOS.value]
    if _TRAIN.value:
        with one_writer(workdir), cli.progress(0, "training", "run") as bar:
            # Planned anew after each: another zoo may be there by then.
            while missing := [r for r in plan.plan(zoos) if not _record(workdir, r).exists()]:
                bar.reset(len(missing))
                bar.set_postfix_str(missing[0].folder)
                _run(workdir, missing[0])
    runs = list(plan.plan(zoos))
    found = [(r, read_json(_record(workdir, r))) for r in runs if _record(workdir, r).exists()]
    if not found:
        raise px.ProbexError(f"{workdir}: nothing is finished, and none of the zoos is built")
    print(report.write(found, Path(_RESULTS.value)))
    if pending := len(runs) - len(found):
        print(f"{pending} runs are still missing; run without --notrain to do them")
    for zoo in zoos:
        if not any(run.zoo == zoo for run in runs):
            print(f"{zoo} is not built yet")


def _record(workdir: Path, run: plan.Run) -> Path:
    return workdir / f"{run.folder}.json"


def _run(workdir: Path, run: plan.Run) -> None:
    """Trains, chooses on validation, tests what was chosen, and keeps the record of it alone."""
    folder = workdir / run.folder
    store = steps.pack(run.zoo / run.tree, folder.parent / "store").store
    config = run.method.settings
    if run.method.screen is not None:
        config["layers"] = _best_layers(workdir, run, run.method.screen)
    start = time.perf_counter()
    metrics = steps.train(config, folder, store)
    write_json(
        _record(workdir, run),
        {
            "seconds": time.perf_counter() - start,
            "accuracy": _accuracies(metrics),
            **{name: metrics.get(name) for name in ("layers", "val_accuracy_by_layer")},
            "val_accuracies": _val_accuracies(folder),
            "versions": metrics["versions"],
            "store_hash": store.hash,
        },
    )
    shutil.rmtree(folder)


def _best_layers(workdir: Path, run: plan.Run, screen: plan.Method) -> list[str]:
    """Those where another method was best on validation."""
    record = read_json(_record(workdir, plan.Run(run.zoo, run.tree, screen)))
    accuracies = record["val_accuracy_by_layer"]
    return sorted(accuracies, key=accuracies.get, reverse=True)[: run.method.layers]


def _accuracies(metrics: Mapping[str, Any]) -> dict[str, float]:
    scores = {"test": metrics["test_accuracy"]}
    if "zero_shot" in metrics:
        zero_shot = metrics["zero_shot"]
        scores |= {"held_out": zero_shot["among_held_out"], "all": zero_shot["among_all"]}
    return {what: score["value"] for what, score in scores.items()}


def _val_accuracies(folder: Path) -> list[float] | None:
    """Of one layer trained by gradient descent, at every evaluation."""
    if not (folder / "expert").exists():
        return None
    return Expert.load(folder).card.figures.get("val_accuracies")


if __name__ == "__main__":
    cli.run(main)
