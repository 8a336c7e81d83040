"""Measures how time and memory of finding copies grow with the models.

Models of one megabyte and one architecture: families of 50 children of a root, of which every tenth
is there again in BF16 under other names, and every fifteenth to the same numbers. Each size is
measured in its own process: sketches of all ("marks"), the search for candidates ("find"), the
comparison of all entries of these ("confirm"). What is found must be what was made.

Example:
  python -m experiments.benchmarks.copies --models=300,3000
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags
from safetensors.numpy import save_file

import probex_jax as px
from experiments import cli
from experiments.benchmarks import memory
from experiments.benchmarks.scaling import exponent
from probex_jax.lineage.copies import confirmed, copies_among, find_copies
from probex_jax.lineage.marks import read_marks

_MODELS = flags.DEFINE_list("models", ["300", "3000"], "Numbers of models.")
_FOLDER = flags.DEFINE_string("folder", None, "Where to make the models. Default: a new one.")

_FAMILY, _LAYERS, _SHAPE = 50, 8, (128, 256)
_PARTS = ("marks", "find", "confirm")


def write_families(folder: Path, n_models: int) -> int:
    """Makes models; returns how many of them are copies of others."""
    folder.mkdir()
    rng, made, copies = np.random.default_rng(0), 0, 0
    root = last = rng.standard_normal((_LAYERS, *_SHAPE), np.float32)
    while made < n_models:
        if made % _FAMILY == 0:
            root = rng.standard_normal((_LAYERS, *_SHAPE), np.float32)
        is_rounded, is_equal = made % 10 == 9, made % 15 == 14
        if is_rounded or is_equal:
            copies += 1
        else:
            last = root + np.float32(0.02) * rng.standard_normal(root.shape, np.float32)
        dtype, name = (ml_dtypes.bfloat16, "blocks") if is_rounded else (np.float32, "layer")
        layers = {f"{name}.{at}.weight": layer.astype(dtype) for at, layer in enumerate(last)}
        save_file(layers, folder / f"{made:06d}.safetensors")
        made += 1
    return copies


def finding(folder: str) -> dict[str, Any]:
    """Finds the copies in a folder."""
    models = [(path.stem, path) for path in sorted(Path(folder).glob("*.safetensors"))]
    copies_among(models[:20])
    times = [time.perf_counter()]
    marks = read_marks(models)
    times.append(time.perf_counter())
    candidates = find_copies(marks)
    times.append(time.perf_counter())
    found = confirmed(candidates, models)
    times.append(time.perf_counter())
    seconds = dict(zip(_PARTS, np.diff(times).tolist(), strict=True))
    return {**seconds, "copies": sum(len(group.models) - 1 for group in found)}


def measure(sizes: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """A row for each size, and one of the exponents."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        made = write_families(folder / f"{size} models", size)
        found = memory.fresh(finding, str(folder / f"{size} models"))
        if found["result"].pop("copies") != made:
            raise AssertionError(f"{size} models: copies were missed, or are none")
        seconds = found["result"]
        row = {"models": size, "copies": made, **{f"{part}, s": s for part, s in seconds.items()}}
        total = sum(seconds.values())
        above = found["peak_mib"] - found["start_mib"]
        rows.append(row | {"all, s": total, "MiB above imports": round(above)})
    if len(rows) > 1:
        parts = [*rows[0]][2:]
        rows.append(
            {"models": "exponent", "copies": ""}
            | {part: exponent(sizes, [row[part] for row in rows]) for part in parts}
        )
    return rows


def main() -> None:
    if not all(size.isascii() and size.isdigit() and int(size) for size in _MODELS.value):
        raise px.ProbexError("--models: expected whole numbers, such as 300,3000")
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        print(cli.table(measure([int(size) for size in _MODELS.value], Path(folder))))


if __name__ == "__main__":
    cli.run(main)
