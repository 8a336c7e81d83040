r"""Measures a simulated hub: how it is indexed and searched.

STEP is one or more of

  hub          the hub alone, asked over 16 connections
  expert       the zoo, store, expert and forest that the others need
  index        models are indexed from the hub, in pieces, the smallest first
  driver       rows that are ready are committed to indexes of several sizes
  approximate  approximate search in tables of several sizes, beside exact scans

What was measured stays in --workdir and is not measured again, so that the command can be
stopped and run in pieces. The models are planted; seed 0 is in all of them.

Example:
  python -m experiments.benchmarks.repository --workdir=out/repository \
    expert index --engine=ray:local --workers=2 --sizes=1000,3000 \
    --hub=--api_ms=150,--cdn_ms=60
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import cli
from experiments.benchmarks import figures, memory
from experiments.benchmarks.repository import alone, approximate, driver, indexing
from experiments.benchmarks.repository.models import LAYER, Models
from probex_jax.errors import ProbexError
from probex_jax.files import read_json, write_json

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all that is made.", required=True)
_SIZES = flags.DEFINE_list("sizes", ["1000", "3000", "10000"], "Numbers of models, growing.")
_ENGINE = flags.DEFINE_string("engine", "threads", "Who indexes, as in index.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Workers of a cluster, as in index.")
_READERS = flags.DEFINE_integer("readers", 16, "Reader threads of each worker.")
_HUB = flags.DEFINE_list("hub", [], "Flags of the hub: see --help of benchmarks.hub.")
_INDEXES = flags.DEFINE_list("indexes", ["ours"], "Approximate indexes, as approximate.INDEXES.")
_VECTORS = flags.DEFINE_enum(
    "vectors", "expert", ["expert", "classes", "random"], "What approximate searches."
)
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures of all steps.")
_SCANS = flags.DEFINE_bool("scans", True, "Whether approximate measures exact scans, too.")

_TREE = 400  # models of the zoo
_TRAIN = (
    "--config=configs/probex.py",
    f"--config.layers={LAYER}",
    "--config.encoder.n_probes=32",
    "--config.encoder.proj_dim=32",
    "--config.encoder.rep_dim=512",
    "--config.normalise=centre",
    "--config.recipe.epochs=100",
)
# Of the table of `index`; the file of results has more.
_COLUMNS = (
    *("models", "added", "failed", "s", "first, s", "cpu, s", "driver peak, MiB"),
    *(
        "workers peak, MiB",
        "hub cpu, s",
        "asked api",
        "asked 429 api",
        "asked resolve",
        "asked 429 resolve",
    ),
    *("asked cdn", "asked bytes", "index, MB", "load"),
)
_MILLION = 10**6
_READY = 20_000  # rows that the driver commits

Row = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    workdir, sizes = Path(_WORKDIR.value), _whole_numbers(_SIZES.value)
    steps: dict[str, Callable[[_Kept, Path, Sequence[int]], Iterator[Row]]] = {
        "hub": _hub,
        "expert": _expert,
        "index": _index,
        "driver": _driver,
        "approximate": _approximate,
    }
    if not arguments or set(arguments) - set(steps):
        raise ProbexError(f"expected steps, some of {', '.join(steps)}")
    workdir.mkdir(parents=True, exist_ok=True)
    measured = {}
    for step in arguments:
        measured[step] = found = list(steps[step](_Kept(workdir / "results.json"), workdir, sizes))
        if found:
            print(cli.table([{name: _short(value) for name, value in r.items()} for r in found]))
        if step == "index" and len(found) > 1:
            print(extrapolated(found))
    figures.keep(_OUT.value, measured)
    return 0


class _Kept:
    """Results in a file, by what they are of."""

    def __init__(self, path: Path):
        self._path = path
        self._found: dict[str, Row] = read_json(path) if path.exists() else {}

    def __call__(self, name: str, work: Any, *arguments: Any) -> Row:
        """The result of work, which is done unless it was done before."""
        if name not in self._found:
            done = work(*arguments)
            moment = {"at": time.strftime("%Y-%m-%d %H:%M"), "load": os.getloadavg()[0]}
            self._found[name] = {**done, **moment}
            write_json(self._path, self._found)
        return self._found[name]


def _hub(kept: _Kept, workdir: Path, sizes: Sequence[int]) -> Iterator[Row]:
    yield kept("hub", alone.rate)


def _expert(kept: _Kept, workdir: Path, sizes: Sequence[int]) -> Iterator[Row]:
    zoo, store, expert = workdir / "zoo" / "Sim", workdir / "store", workdir / "expert"
    if not zoo.exists():
        Models().write_zoo(zoo, _TREE)
    commands = {
        "pack": [f"--zoo={zoo}", f"--store={store}"],
        "train": [*_TRAIN, f"--config.store={store}", f"--workdir={expert}"],
    }
    grown = [f"--forest={workdir / 'forest'}", f"--stores={store}", f"--experts={expert}"]
    commands["grow_forest"] = grown
    for name, given in commands.items():
        kept(name, memory.fresh, memory.command, name, *given)
    test = read_json(expert / "metrics.json")["test_accuracy"]
    yield {"accuracy on planted models": test["value"]}


def _index(kept: _Kept, workdir: Path, sizes: Sequence[int]) -> Iterator[Row]:
    engine = f"{_ENGINE.value} {_WORKERS.value}x{_READERS.value}"
    name = " ".join([engine, *_HUB.value])
    folder = workdir / "indexes" / "".join(c if c.isalnum() else "-" for c in name)
    folder.parent.mkdir(exist_ok=True)
    expert, before = str(workdir / "expert"), 0

    def piece(first: int, last: int) -> Row:
        models = workdir / f"{first}-{last}.txt"
        indexing.write_list(models, first, last)
        given = (expert, str(models), str(folder), _ENGINE.value, _WORKERS.value, _READERS.value)
        found = indexing.measure(indexing.indexed, *given, behaviour=_HUB.value)
        return found | {"index, MB": indexing.megabytes(folder)}

    for size in sizes:
        found = {"models": size, **kept(f"index {name} {size}", piece, before + 1, size)}
        yield {column: found.get(column, "") for column in _COLUMNS}
        before = size


def extrapolated(pieces: Sequence[Row]) -> str:
    """What a million models would take, by the power law through cumulative seconds.

    Args:
      pieces: results of `indexing.indexed`, growing; seconds before the first model are left out.
    """
    sizes = [piece["models"] for piece in pieces]
    seconds = np.cumsum([piece["s"] - piece["first, s"] for piece in pieces])
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    hours = seconds[-1] * (_MILLION / sizes[-1]) ** exponent / 3600
    return f"exponent {exponent:.2f}; extrapolated to a million models: {hours:.1f} hours"


def _driver(kept: _Kept, workdir: Path, sizes: Sequence[int]) -> Iterator[Row]:
    expert = str(workdir / "expert")
    for size in sizes:
        table, folder = workdir / f"table {size}", workdir / f"driver {size}"

        def step(table: Path = table, folder: Path = folder) -> Row:
            driver.begun(str(folder), expert, str(table) if table.exists() else "")
            given = (driver.committed, str(folder), expert, _MILLION + 1, _READY)
            found = memory.fresh(*given)
            return found["result"] | {"peak, MiB": found["peak_mib"]}

        yield kept(f"driver {size}", step)


def _approximate(kept: _Kept, workdir: Path, sizes: Sequence[int]) -> Iterator[Row]:
    kind, most = _VECTORS.value, max(sizes)
    vectors = str(workdir / f"{kind}.npy")
    source = str(workdir / "expert") if kind == "expert" else kind
    kept(f"vectors {kind} {most}", memory.fresh, approximate.represented, vectors, source, most, 1)
    for size in sizes:
        folder = str(workdir / (f"table {size}" if kind == "expert" else f"{kind} {size}"))
        kept(f"fill {kind} {size}", memory.fresh, approximate.fill, folder, vectors, size)
        for way in ("exact scan", "in memory") if _SCANS.value else ():
            given = (approximate.ask, folder, vectors, size, way)
            yield _asked(size, way, {}, kept(f"{way} {kind} {size}", memory.fresh, *given))
        for index in _INDEXES.value:
            name = f"{index} {kind} {size}"
            to_build = (approximate.build, folder, vectors, approximate.INDEXES[index])
            built = kept(f"build {name}", memory.fresh, *to_build)
            to_ask = (approximate.ask, folder, vectors, size, "ours")
            yield _asked(size, index, built, kept(f"ask {name}", memory.fresh, *to_ask))


def _asked(size: int, way: str, built: Row, asked: Row) -> Row:
    made = built.get("result", {})
    return {
        "vectors": size,
        "way": way,
        "build, s": made.get("s", ""),
        "build peak, MiB": built.get("peak_mib", ""),
        "on disk, MB": made.get("MB", ""),
        **asked["result"],
        "query peak, MiB": asked["peak_mib"],
    }


def _whole_numbers(texts: Sequence[str]) -> list[int]:
    try:
        return sorted(map(int, texts))
    except ValueError:
        raise ProbexError("--sizes: expected whole numbers, such as 1000,3000") from None


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    cli.run_with_arguments(main)
