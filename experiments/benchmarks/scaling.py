"""Measures how time and memory grow with the number of models.

Each is measured in its own process. Time leaves out imports and compilation; memory is the peak of
the process. An exponent is the slope of log cost on log models; where more than 1.1 is expected,
the column "stated" says why.

  pack      links to one file of half a megabyte
  train     ProbeX with Adam on two layers of 128x128
  ridge     the same layers in closed form
  stream    two epochs of one layer of 256x256, batches read from the store
  discover  files of five trees
  search    an index is built ("index"), then asked 200 times ("queries")

Example:
  python -m experiments.benchmarks.scaling
"""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from safetensors.numpy import save_file

import probex_jax as px
from experiments import cli
from experiments.benchmarks import figures, memory
from experiments.benchmarks.packing import pack_once, write_models
from probex_jax.fitting import Adam, ClosedForm
from probex_jax.forest import discover
from probex_jax.search import ModelTable
from probex_jax.sweeps import sweep

_TIMES = flags.DEFINE_list(
    "times", ["1", "4", "16"], "Numbers of models, as multiples of the smallest."
)
_ONLY = flags.DEFINE_list("only", [], "What to measure. Default: all.")
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")

MOST = 1.1
_DIM = 128
_EPOCHS = 50
_QUERIES, _VECTOR_DIM, _CENTRES = 200, 256, 100


def measure(times: Sequence[int] = (1, 4, 16), only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Seconds, peaks of memory and their exponents.

    Args:
      times: sizes, times the smallest.
      only: which of `_WORKS`; all if empty.

    Returns:
      A row for each, with the costs at each size and the fitted exponents.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for what, (smallest, prepare, work, stated) in _WORKS.items():
            if only and what not in only:
                continue
            sizes = [smallest * factor for factor in times]
            found = []
            for size in sizes:
                folder = Path(name) / f"{what} {size}"
                folder.mkdir()
                prepare(folder, size)
                found.append(memory.fresh(work, str(folder), size))
            for part in found[0]["result"]:
                row = {"what": part, "models": " ".join(map(str, sizes))}
                seconds = [one["result"][part] for one in found]
                peaks = [one["peak_mib"] for one in found]
                row |= {f"{t}x, s": s for t, s in zip(times, seconds, strict=True)}
                row["time exponent"] = exponent(sizes, seconds)
                row |= {f"{t}x, MiB": round(p) for t, p in zip(times, peaks, strict=True)}
                row["imports, MiB"] = round(found[0]["start_mib"])
                row["memory exponent"] = exponent(sizes, peaks)
                rows.append(row | {"stated": stated})
    return rows


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of log cost on log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]) if len(sizes) > 1 else np.nan


def _links(folder: Path, n_models: int) -> None:
    write_models(folder / "few", 8, [(256, 256)] * 2, is_linked=True)
    write_models(folder / "zoo", n_models, [(256, 256)] * 2, is_linked=True)


def packing(folder: str, n_models: int) -> dict[str, float]:
    """Packs models that are links."""
    pack_once(f"{folder}/few", f"{folder}/few packed")
    return {"pack": pack_once(f"{folder}/zoo", f"{folder}/packed")}


def _store(folder: Path, n_models: int) -> None:
    write_models(folder / "zoo", n_models, [(_DIM, _DIM)] * 2)
    px.pack(px.scan(folder / "zoo"), folder / "store")


def training(folder: str, n_models: int) -> dict[str, float]:
    """Trains an expert of each layer with Adam, the second time."""
    encoder = {"name": "probex", "n_probes": 64, "proj_dim": 64, "rep_dim": 64}
    recipe = Adam(epochs=_EPOCHS, eval_every=_EPOCHS, batch_size=16)
    return {"train": _second_sweep(folder, encoder, "class", recipe)}


def _large_store(folder: Path, n_models: int) -> None:
    write_models(folder / "zoo", n_models, [(256, 256)], is_linked=True)
    px.pack(px.scan(folder / "zoo"), folder / "store")


def streaming(folder: str, n_models: int) -> dict[str, float]:
    """Trains an expert whose batches are read from the store, the second time."""
    encoder = {"name": "probex", "n_probes": 16, "proj_dim": 16, "rep_dim": 16}
    recipe = Adam(epochs=2, eval_every=2, batch_size=32)
    return {"stream": _second_sweep(folder, encoder, "class", recipe, stream=True)}


def ridge(folder: str, n_models: int) -> dict[str, float]:
    """Fits an expert of each layer in closed form, the second time."""
    encoder = {"name": "dense", "standardise": True}
    return {"ridge": _second_sweep(folder, encoder, "none", ClosedForm())}


def _second_sweep(
    folder: str, encoder: Any, head: str, recipe: Adam | ClosedForm, *, stream: bool = False
) -> float:
    store, start = px.LayerStore.open(f"{folder}/store"), 0.0
    for turn in ("first", "second"):
        start = time.perf_counter()
        workdir = Path(folder) / turn
        sweep(store, workdir, encoder=encoder, head=head, recipe=recipe, stream=stream)
    return time.perf_counter() - start


def _trees(folder: Path, n_models: int) -> None:
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((5, 2, 64, 64), np.float32)
    for number in range(n_models):
        weights = roots[number % 5] + 0.1 * rng.standard_normal((2, 64, 64), np.float32)
        layers = {f"layer.{index}.weight": w for index, w in enumerate(weights)}
        save_file(layers, folder / f"{number:05d}.safetensors")


def discovering(folder: str, n_models: int) -> dict[str, float]:
    """Finds the trees of files."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    discover(paths[:20])
    start = time.perf_counter()
    found = discover(paths)
    assert not found.failed
    return {"discover": time.perf_counter() - start}


def _nothing(folder: Path, n_models: int) -> None:
    pass


def searching(folder: str, n_models: int) -> dict[str, float]:
    """Builds the table of models with its ANN index, and asks it."""
    _search(Path(folder) / "few", 500)
    return _search(Path(folder) / "table", n_models)


def _search(folder: Path, n_models: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((_CENTRES, _VECTOR_DIM), np.float32)
    noise = rng.standard_normal((n_models, _VECTOR_DIM), np.float32)
    vectors = centres[rng.integers(_CENTRES, size=n_models)] + 0.7 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    start = time.perf_counter()
    table = ModelTable(folder, _VECTOR_DIM, create=True)
    for first in range(0, n_models, 10_000):
        part = vectors[first : first + 10_000]
        table.add([{"path": str(first + n)} for n in range(len(part))], part)
    table.compact()
    table.build_ann()
    built = time.perf_counter()
    for vector in vectors[rng.integers(n_models, size=_QUERIES)]:
        table.nearest(vector, 10)
    return {"index": built - start, "queries": time.perf_counter() - built}


_Prepare = Callable[[Path, int], None]
_Work = Callable[[str, int], dict[str, float]]
# Name: smallest number of models, what writes them, what is measured, why more than MOST is due.
_WORKS: dict[str, tuple[int, _Prepare, _Work, str]] = {
    "pack": (125, _links, packing, ""),
    "train": (60, _store, training, ""),
    "stream": (125, _large_store, streaming, ""),
    "ridge": (60, _store, ridge, "a Gram matrix of all models, N², and its eigenvectors, N³"),
    "discover": (250, _trees, discovering, "Ward of up to 2,048 models at once, N²; then N"),
    "search": (2_500, _nothing, searching, ""),
}


def main() -> None:
    if unknown := set(_ONLY.value) - set(_WORKS):
        raise px.ProbexError(f"--only: {', '.join(sorted(unknown))} not among {', '.join(_WORKS)}")
    if not (_TIMES.value and all(re.fullmatch("[1-9][0-9]*", factor) for factor in _TIMES.value)):
        raise px.ProbexError("--times: expected whole numbers, such as 1,4,16")
    rows = measure([int(factor) for factor in _TIMES.value], _ONLY.value)
    print(cli.table(rows))
    figures.keep(_OUT.value, rows)
    for row in rows:
        for cost in ("time", "memory"):
            if row[f"{cost} exponent"] > MOST and not row["stated"]:
                print(f"{row['what']}: {cost} grows with an exponent above {MOST}")


if __name__ == "__main__":
    cli.run(main)
