r"""Trains every method on every tree of several zoos: the tables of results/.

It takes hours. Run the same command again to resume, or when another zoo is
built; --train=false only writes the tables of what is finished. Zoos differ by
the seed that they were built with.

Example:
  python -m experiments.benchmarks.accuracy --zoos=out/zoos/0,out/zoos/1 \
    --workdir=out/accuracy --results=results
"""

from pathlib import Path

from absl import flags

from experiments import cli
from experiments.benchmarks.accuracy import plan, report
from experiments.benchmarks.accuracy.train import records, train_missing
from probex_jax.errors import ProbexError

_ZOOS = flags.DEFINE_list(
    "zoos", None, "Folders that probex build_zoo wrote, each with another seed.", required=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for stores, records, and what is in training.", required=True
)
_RESULTS = flags.DEFINE_string("results", None, "Folder for the tables.", required=True)
_STAGES = flags.DEFINE_integer(
    "stages", len(plan.STAGES[plan.LORAS]), "Stages of methods, the most telling first.", 1
)
_TRAIN = flags.DEFINE_bool("train", True, "Whether to train what is missing.")


def main() -> None:
    workdir, zoos = Path(_WORKDIR.value), [Path(zoo) for zoo in _ZOOS.value]
    if _TRAIN.value:
        train_missing(zoos, workdir, _STAGES.value)
    found, runs = records(zoos, workdir), list(plan.plan(zoos, _STAGES.value))
    if not found:
        raise ProbexError(f"{workdir}: no run is finished; of the zoos {len(runs)} can be made")
    print(report.write(found, Path(_RESULTS.value)))
    if len(found) < len(runs):
        print(f"{len(runs) - len(found)} runs are missing")
    for zoo in zoos:
        if not any(run.zoo == zoo for run in runs):
            print(f"{zoo}: not built yet")


if __name__ == "__main__":
    cli.run(main)
