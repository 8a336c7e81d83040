r"""Measures a machine with one GPU, within ten minutes.

Each part is a process of its own with so many seconds; what it has measured by then stays in
--results, as experiments.benchmark keeps it. Rates are in float32, TF32 and bfloat16, and beside
PyTorch where that is installed.

  limits       matrix products, copies in the device's memory and to it
  train        an epoch of ProbeX, MVProbe and LoRAs in factors
  encoder      their representations
  closed_form  one layer in closed form, beside epochs of Adam
  layers       74 layers of ViT-Base by gradient descent, and in closed form

Example:
  python -m experiments.benchmarks.gpu
  python -m experiments.benchmarks.gpu --quick --results=out/gpu_quick
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import probex_jax as px
from experiments import cli
from experiments.benchmarks import (
    encoder,
    figures,
    products,
    programs,
    report,
    sweep,
    timing,
    train,
)
from experiments.benchmarks.figures import Figure
from experiments.benchmarks.inputs import Case

_RESULTS = flags.DEFINE_string("results", "results/speed", "Folder of all results.")
_PART = flags.DEFINE_string("part", None, "Measure one part, in this process.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs; the median counts.", 1)
_QUICK = flags.DEFINE_bool("quick", False, "Tiny sizes, to see on any machine that all of it runs.")

_CASES = (
    Case("probex", dim=768, rank=0, models=1024, rep_dim=128),
    Case("mvprobe", dim=768, rank=0, models=1024, rep_dim=512),
    Case("probex", dim=1280, rank=16, models=1024, rep_dim=512),
)
_LAYERS = sweep.Sizes(models=48, blocks=12, width=768, epochs=20, alone=1, more=2, closed_form=True)
_GIB = 2**30


def _sized(case: Case) -> Case:
    tiny = replace(case, dim=16, rank=min(case.rank, 2), models=8, units=4)
    return tiny if _QUICK.value else case


def limits(repeats: int) -> Iterator[Figure]:
    """Rates that others are fractions of."""
    size, n_bytes = (64, 2**20) if _QUICK.value else (8192, 4 * _GIB)
    for mode in products.modes():
        multiply, flops = timing.product(size, mode.dtype)
        seconds = timing.times({"product": mode.applied(multiply)}, repeats)
        name = f"{mode.name} product of {size}³"
        yield Figure(name, "GFLOP/s", {"product": flops / 1e9}, seconds)
    host = np.ones(n_bytes // 4, np.float32)
    device, copied = jax.device_put(host), jax.jit(lambda x: x + 1)
    work = {"reading and writing": 2e-9 * n_bytes, "to the device": 1e-9 * n_bytes}
    seconds = timing.times(
        {"reading and writing": lambda: copied(device), "to the device": lambda: jnp.array(host)},
        repeats,
    )
    for name in work:
        yield Figure(name, "GB/s", {name: work[name]}, {name: seconds[name]})


def training(repeats: int) -> Iterator[Figure]:
    """Suite `train` at sizes for an accelerator."""
    for case in _CASES:
        yield from train.measure([_sized(case)], repeats, 64 if _QUICK.value else None)


def encoding(repeats: int) -> Iterator[Figure]:
    """Suite `encoder` at the same sizes."""
    for case in _CASES:
        yield from encoder.measure([_sized(case)], repeats, 64 if _QUICK.value else None)


def closed_form(repeats: int) -> Iterator[Figure]:
    """`px.fit` of one layer, as it comes to whoever has arrays: compiled before it is timed."""
    models, dim, epochs = (20, 16, 2) if _QUICK.value else (200, 768, 100)
    case = Case("probex", dim=dim, rank=0, models=models, rep_dim=128)
    data = case.split(with_text=False)
    x, y = data.x, np.asarray(data.y)
    adam = px.Adam(learning_rate=1e-3, epochs=epochs, eval_every=epochs)
    linear = px.ProbeX(128, 128, y.shape[1], relu=False, standardise=True)
    candidates: dict[str, Callable[[], object]] = {
        "closed form": lambda: px.fit(linear, x, y).variables,
        f"{epochs} epochs of Adam": lambda: (
            px.fit(px.ProbeX(128, 128, 128), x, y, recipe=adam).variables
        ),
    }
    work = dict.fromkeys(candidates, float(models))
    name = f"a layer of {dim}x{dim}, {models} models"
    yield Figure(name, "models/s", work, timing.times(candidates, repeats))


def layers(repeats: int) -> Iterator[Figure]:
    """Suite `sweep` at the sizes of ViT-Base: as programs, from files to an expert."""
    tiny = replace(_LAYERS, models=20, blocks=1, width=4, epochs=2, more=0)
    yield from sweep.measured(tiny if _QUICK.value else _LAYERS, 1, 64 if _QUICK.value else 8192)


class _Part(NamedTuple):
    seconds: float
    measure: Callable[[int], Iterator[Figure]]


PARTS = {
    "limits": _Part(40, limits),
    "train": _Part(90, training),
    "encoder": _Part(70, encoding),
    "closed_form": _Part(40, closed_form),
    "layers": _Part(300, layers),
}


def main() -> int:
    if _PART.value:
        if _PART.value not in PARTS:
            raise px.ProbexError(f"--part={_PART.value}: not among {', '.join(PARTS)}")
        _measure(_PART.value)
        return 0
    return int(sum(_child(name, part.seconds) for name, part in PARTS.items()) > 0)


def _child(name: str, seconds: float) -> bool:
    """Measures a part in a process of its own; whether that failed or was cut off."""
    given = [f"--part={name}", f"--results={_RESULTS.value}", f"--repeats={_REPEATS.value}"]
    given += ["--quick"] if _QUICK.value else []
    start = time.perf_counter()
    words = [sys.executable, "-m", "experiments.benchmarks.gpu", *given]
    try:
        code = programs.child(words, seconds=None if _QUICK.value else seconds)
        ended = f"ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        ended = f"cut off after {seconds:.0f} s"
    print(f"{name}: {ended or f'{time.perf_counter() - start:.0f} s'}\n", flush=True)
    return bool(ended)


def _measure(name: str) -> None:
    """Keeps what a part measured after every figure."""
    found: list[Figure] = []
    for figure in PARTS[name].measure(_REPEATS.value):
        found.append(figure)
        record = figures.record(name, found, quick=_QUICK.value)
        print(figures.summary(record["figures"][-1:]), flush=True)
        report.keep(record, Path(_RESULTS.value))


if __name__ == "__main__":
    cli.run(main)
