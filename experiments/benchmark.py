"""Measures the speed of everything, against a limit and PyTorch.

Each suite prints rates (more is better) as a fraction of a limit measured in the same run, and as a
ratio to plain PyTorch if that is installed. experiments/benchmarks/SUITE.py says what a suite does.

Example:
  python -m experiments.benchmark --suite=train,search
  python -m experiments.benchmark --results=results/speed
"""

from importlib import import_module
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.benchmarks import figures, report
from probex_jax.errors import ProbexError

SUITES = ("encoder", "train", "sweep", "pack", "describe", "search", "engine")

_SUITE = flags.DEFINE_list("suite", list(SUITES), "Suites to run.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write: all that was measured.")
_RESULTS = flags.DEFINE_string(
    "results",
    None,
    "Folder of all results, a file for each suite and device; FOLDER.md is made of them.",
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs; the median counts.", 1)
_QUICK = flags.DEFINE_bool("quick", False, "Smaller sizes, for an impression.")


def main() -> None:
    if unknown := set(_SUITE.value) - set(SUITES):
        raise ProbexError(f"--suite: {', '.join(sorted(unknown))} not among {', '.join(SUITES)}")
    records = []
    for name in _SUITE.value:
        suite = import_module(f"experiments.benchmarks.{name}")
        sizes = suite.QUICK if _QUICK.value else suite.DEFAULT
        found = figures.record(name, suite.measure(sizes, _REPEATS.value), quick=_QUICK.value)
        if not found["figures"]:
            print(f"{name}: nothing to measure here\n", flush=True)
            continue
        print(f"{name}:\n\n{figures.summary(found['figures'])}\n", flush=True)
        records.append(found)
        if _OUT.value:
            figures.save(Path(_OUT.value), records)
        if _RESULTS.value:
            report.keep(found, Path(_RESULTS.value))


if __name__ == "__main__":
    cli.run(main)
