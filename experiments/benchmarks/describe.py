"""Describing models: a cold start on one file, and how many files a second.

Makes a tree of synthetic models of about 1 MB, an expert of several of its layers, and a forest.
A cold start is the whole command, from the shell to the card. The rate is that of the whole command
on a folder, and of the library on the same files when its programs are compiled, each beside
reading the same bytes with as many threads in the same run: from the page cache, since the files
were written just before.

Example:
  python -m experiments.benchmarks.describe --models=1000
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags
from safetensors.numpy import save_file

import probex_jax as px
from experiments import cli
from probex_jax.experts import Ridge, sweep
from probex_jax.forest import Forest, grow

_MODELS = flags.DEFINE_integer("models", 1000, "Models to describe.")
_SIZE = flags.DEFINE_integer("size", 256, "Rows and columns of each of their four layers.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Repeats of each; the median is printed.")

_LAYERS = 4
_CLASSES = 10
_READERS = 4
# Models that the expert is fitted to, by split.
_KNOWN = {"train": 60, "val": 20, "test": 20}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forest = _forest(folder)
        unknown = [
            folder / "unknown" / f"{number:04d}.safetensors" for number in range(_MODELS.value)
        ]
        command = [sys.executable, "-m", "experiments.describe", f"--forest={forest}"]
        cold_s = _median(lambda: _run([*command, str(unknown[0])]))
        command_s = _median(lambda: _run([*command, "--json", str(folder / "unknown")]))
        opened = Forest.load(forest)
        assert all(isinstance(one, px.Description) for one in opened.describe_all(unknown))
        library_s = _median(lambda: list(opened.describe_all(unknown)))
        read_s = _median(lambda: _read_all(unknown))
        row = {
            "models": len(unknown),
            "MB each": unknown[0].stat().st_size / 2**20,
            "cold start, s": cold_s,
            "command, models/s": len(unknown) / command_s,
            "library, models/s": len(unknown) / library_s,
            "reading alone, models/s": len(unknown) / read_s,
            "library / reading": read_s / library_s,
        }
    print(cli.table([row]))


def _forest(folder: Path) -> Path:
    """Writes the models, and grows a forest that knows their tree."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(_LAYERS, _SIZE.value, _SIZE.value))
    directions = 0.02 * rng.normal(size=(_CLASSES, *root.shape))

    def write(path: Path) -> None:
        classes = rng.permutation(_CLASSES)[: _CLASSES // 2]
        weights = root + directions[classes].sum(axis=0) + 0.02 * rng.normal(size=root.shape)
        tensors = {f"layer.{n}.weight": w.astype(np.float32) for n, w in enumerate(weights)}
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = [f"class {number}" for number in sorted(classes)]
        save_file(tensors, path, {"dataset_chosen_targets": str(labels)})

    for split, count in _KNOWN.items():
        for number in range(count):
            write(folder / "zoo" / split / f"{split}_{number}.safetensors")
    for number in range(_MODELS.value):
        write(folder / "unknown" / f"{number:04d}.safetensors")
    store = px.pack(px.scan(folder / "zoo"), folder / "store").store
    found = sweep(
        store,
        folder / "experts",
        encoder={"name": "dense", "standardise": True},
        head="none",
        recipe=Ridge(),
        normalise="centre",
        committee=_LAYERS,
    )
    grow(folder / "forest", store, found.expert)
    return folder / "forest"


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _read_all(paths: list[Path]) -> None:
    with ThreadPoolExecutor(_READERS) as readers:
        list(readers.map(Path.read_bytes, paths))


def _median(function: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    cli.run(main)
