r"""Measures training on planted models of real sizes: time, memory and disk.

The default, ridge on all entries and ProbeX by Adam, each in a process of its own. Accuracies are
on planted models and say nothing of real ones. Run the same command again to resume: a step that
was measured stays as it is.

Example:
  python -m experiments.benchmarks.planted --workdir=out/planted
  python -m experiments.benchmarks.planted --workdir=out/thousand \
    --layers=768x768 --models=1000 --noadam
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments import cli
from experiments.benchmarks import figures, memory
from experiments.costs import Costs
from experiments.steps import Row
from probex_jax.claims import claim
from probex_jax.errors import ProbexError
from probex_jax.experts.chance import chance_of
from probex_jax.experts.checkpoints import remove
from probex_jax.files import read_json, write_json

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all that is made.", required=True)
_SIZE = flags.DEFINE_string("size", "vit_base", "Size of configs/zoo_planted.py.")
_MODELS = flags.DEFINE_integer("models", None, "Models, if not the size's.", lower_bound=10)
_LAYERS = flags.DEFINE_list("layers", [], "Layers, if not the size's, as 768x768,3072x768.")
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")
_ADAM = flags.DEFINE_bool("adam", True, "Whether ProbeX is trained by Adam, too, for 200 epochs.")

_FIRST = r"--config.layers=layers\.0(\.weight)?"
_MB = 10**6
_COLUMNS = (
    "what",
    "process, s",
    "training, s",
    "peak, MiB",
    "on disk, MB",
    "expert, MB",
    "accuracy on planted models",
    "chance",
)


class _Step(NamedTuple):
    what: str
    command: str
    arguments: Sequence[str]
    made: Path


def main() -> None:
    workdir = Path(_WORKDIR.value)
    zoo = _zoo()
    claim(workdir, {"zoo": zoo})
    path = workdir / "results.json"
    rows: list[Row] = read_json(path) if path.exists() else []
    for step in _steps(workdir, zoo):
        if step.what not in (row["what"] for row in rows):
            remove(step.made)  # what was killed half-way would count for its rest alone
            rows.append(_measured(step))
            write_json(path, rows)
    figures.keep(_OUT.value, rows, zoo=zoo)
    print(cli.table([{column: row[column] for column in _COLUMNS} for row in rows]))


def _zoo() -> list[str]:
    """The flags that build_zoo takes."""
    given = [f"--config=configs/zoo_planted.py:{_SIZE.value}"]
    if _MODELS.value is not None:
        given.append(f"--config.models={_MODELS.value}")
    if _LAYERS.value:
        given.append(f"--config.layers={tuple(map(_shape, _LAYERS.value))}")
    return given


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise ProbexError(f"--layers: {text!r} is not written ROWSxCOLUMNS")
    return int(rows), int(columns)


def _steps(workdir: Path, zoo: Sequence[str]) -> Iterator[_Step]:
    yield _Step("planting", "build_zoo", [*zoo, f"--out={workdir / 'zoo'}"], workdir / "zoo")
    [tree] = (path.parent for path in workdir.glob("zoo/*/zoo.json"))
    store = workdir / "store"
    yield _Step("packing", "pack", [f"--zoo={tree}", f"--store={store}"], store)
    methods = {
        "default": [],
        "ridge on all entries": ["--config=configs/ridge.py"],
        "default, first layer": [_FIRST],
    }
    if _ADAM.value:
        by_adam = ["--config=configs/probex.py", "--config.recipe.epochs=200", _FIRST]
        methods["ProbeX by Adam, first layer"] = by_adam
    for what, given in methods.items():
        made = workdir / what.replace(",", "").replace(" ", "_")
        yield _Step(what, "train", [*given, f"--config.store={store}", f"--workdir={made}"], made)
    forest, expert = workdir / "forest", workdir / "default"
    grown = [f"--forest={forest}", f"--stores={store}", f"--experts={expert}"]
    yield _Step("growing a forest", "grow_forest", grown, forest)
    model, out = min((tree / "test").iterdir()), workdir / "card"
    asked = [f"--forest={forest}", f"--out={out}", str(model)]
    yield _Step("describing a model", "describe", asked, out)


def _measured(step: _Step) -> Row:
    start = time.perf_counter()
    peak = memory.fresh(memory.command, step.command, *step.arguments)["peak_mib"]
    row: Row = {
        "what": step.what,
        "process, s": time.perf_counter() - start,
        "training, s": "",
        "peak, MiB": peak,
        "on disk, MB": _megabytes(step.made),
        "expert, MB": "",
        "accuracy on planted models": "",
        "chance": "",
    }
    if step.command != "train":
        return row
    test = read_json(step.made / "metrics.json")["test_accuracy"]
    return row | {
        "training, s": sum(cost.seconds for cost in Costs(step.made).steps),
        "expert, MB": _megabytes(step.made / "expert"),
        "accuracy on planted models": test["value"],
        "chance": chance_of(test),
    }


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _MB


if __name__ == "__main__":
    cli.run(main)
