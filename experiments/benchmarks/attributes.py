r"""Measures attributes told from weights: accuracy, coverage, cost.

Zoos are built with configs/zoo_miniature.py:attributes, each with another seed. Every tree is
packed and trained on with --config.task=all; run it again to resume. --cost=STORE times trainings
on classes alone, with one attribute more, and on all, in turns, each in a process of its own.

Example:
  python -m experiments.benchmarks.attributes --workdir=out/attr \
    --zoos=out/zoos/510,out/zoos/511
"""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from absl import flags

import probex_jax as px
from configs import default
from experiments import cli, steps
from experiments.benchmarks import figures
from experiments.costs import Costs
from probex_jax.files import read_json
from probex_jax.fitting.metrics import mean_score
from probex_jax.integrity import unsealed

_ZOOS = flags.DEFINE_list("zoos", [], "Folders that probex build_zoo wrote.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of stores and results.", required=True)
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")
_COST = flags.DEFINE_string("cost", None, "A store, to time trainings on.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "How often each is timed.", lower_bound=1)
_ONE_MORE = flags.DEFINE_string("one_more", "learning_rate", "The attribute that --cost adds.")

Row = dict[str, object]


def main() -> None:
    workdir = Path(_WORKDIR.value)
    trained = [
        _trained(tree, workdir, f"{zoo.name}-{tree.name}")
        for zoo in map(Path, _ZOOS.value)
        for tree in sorted(path.parent for path in zoo.glob("*/zoo.json"))
    ]
    found: dict[str, list[Row]] = {}
    if trained:
        found = {"attributes": rows(trained), "coverage": [_coverage(trained)]}
    if _COST.value:
        found["cost"] = _cost(_COST.value, workdir)
    for table in found.values():
        print(cli.table([{name: _cell(cell) for name, cell in row.items()} for row in table]))
    figures.keep(_OUT.value, found)


def _trained(zoo: Path, workdir: Path, name: str) -> Mapping[str, Any]:
    """Trains on all attributes of a tree, or reads what was trained."""
    store, results = workdir / "stores" / name, workdir / "trained" / name
    path = results / "metrics.json"
    if not path.exists():
        packed = steps.pack(zoo, store).store
        config = {**default.get_config().to_dict(), "store": str(packed.path), "task": "all"}
        steps.train(config, results)
    return unsealed(read_json(path), path)


def rows(trained: list[Mapping[str, Any]]) -> list[Row]:
    """A row of each attribute of each tree, over its zoos."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for metrics in trained:
        for name, each in metrics["attributes"].items():
            found[metrics["tree"], name].append(each)
    return [_row(*key, each) for key, each in sorted(found.items())]


def _row(tree: str, name: str, zoos: list[Mapping[str, Any]]) -> Row:
    is_number = zoos[0]["task"]["name"] == px.Number.name
    tested = [each["test_accuracy"] for each in zoos]
    covered = [each["test_coverage"]["value"] for each in zoos if "test_coverage" in each]
    return {
        "tree": tree,
        "attribute": name,
        "figure": "R²" if is_number else "accuracy",
        "test": figures.spread([test["value"] for test in tested]),
        "chance": fmean(test["chance"] for test in tested),
        "90 % covers": figures.spread(covered) if covered else "",
        "zoos": len(zoos),
        "told in": sum(each["told"] for each in zoos),
    }


def _coverage(trained: list[Mapping[str, Any]]) -> Row:
    """Of all attributes that the weights tell, on average over trees and zoos."""
    told = [
        each
        for metrics in trained
        for each in metrics["attributes"].values()
        if each["told"] and "test_coverage" in each
    ]
    found = mean_score(np.array([each["test_coverage"]["value"] for each in told]))
    return {"attributes told": len(told), "90 % covers, mean": vars(found)}


def _cell(value: Any) -> Any:
    """Of a table: a mean with its spread, or a score with its interval."""
    if not isinstance(value, dict):
        return value
    if "low" in value:
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}" + (f" ± {value['sd']:.3f}" if value["n"] > 1 else "")


def _cost(store: str, workdir: Path) -> list[Row]:
    """Seconds of training, in turns, so that all see the machine alike."""
    asked = {
        "classes alone": "",
        "classes, as an attribute": "classes,",
        "classes and one more": f"classes,{_ONE_MORE.value}",
        "all": "all",
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for repeat in range(_REPEATS.value):
        for name, task in asked.items():
            results = workdir / "cost" / f"{name.replace(' ', '-')}-{repeat}"
            if not (results / "metrics.json").exists():
                command = [sys.executable, "-m", "experiments.train", f"--workdir={results}"]
                command += [f"--config.store={store}", f"--config.task={task}"]
                subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(sum(step.seconds for step in Costs(results).steps))
    base = median(seconds["classes alone"])
    return [
        {
            "asked": name,
            "training, s": median(each),
            "least": min(each),
            "most": max(each),
            "more than classes alone": median(each) / base - 1,
            "repeats": len(each),
        }
        for name, each in seconds.items()
    ]


if __name__ == "__main__":
    cli.run(main)
