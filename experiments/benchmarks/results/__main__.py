r"""Measures all that results/ has once more: hours on a quiet machine.

Run it again after it was stopped: steps that are done are skipped, and the one that was stopped
goes on where it was. A step is done again if its commands, or a step that it needs, have changed.
--list says what is done, --quick does a small size of everything in out/results_quick, to see that
all of it works, and --write puts the figures into the pages.

Example:
  python -m experiments.benchmarks.results --list
  python -m experiments.benchmarks.results --step=zoos,accuracy
"""

from pathlib import Path

from absl import flags

from experiments import cli
from experiments.benchmarks.results import pages, plan, running
from probex_jax.errors import ProbexError
from probex_jax.files import one_writer

_STEP = flags.DEFINE_list("step", [], "Steps to run, with those that they need. Default: all.")
_AGAIN = flags.DEFINE_list("again", [], "Steps to repeat, though they are done; no others.")
_QUICK = flags.DEFINE_bool("quick", False, "A small size of everything, in minutes.")
_LIST = flags.DEFINE_bool("list", False, "Only say what is done, and when it was.")
_WRITE = flags.DEFINE_bool("write", False, "Only write the figures of results/ into the pages.")
_WORKDIR = flags.DEFINE_string("workdir", "out/results", "Folder of all that is made on the way.")


def main() -> int:
    if _WRITE.value:
        for page in pages.write_all():
            print(f"{page}: figures written")
        return 0
    workdir, results = Path(_WORKDIR.value), running.ROOT / "results"
    steps = plan.steps(plan.QUICK if _QUICK.value else plan.DEFAULT)
    if _QUICK.value:
        workdir = workdir.with_name(f"{workdir.name}_quick")
        results = workdir / "results"
    asked = _AGAIN.value or _STEP.value
    if unknown := set(asked) - {step.name for step in steps}:
        names = ", ".join(step.name for step in steps)
        raise ProbexError(f"{', '.join(sorted(unknown))}: no such step; there are {names}")
    runner = running.Runner(steps, workdir, results)
    if not _LIST.value:
        with one_writer(workdir):
            for name in _AGAIN.value:
                runner.forget(name)
            failed = runner.run(asked)
    print(cli.table(runner.rows()))
    return 0 if _LIST.value else int(bool(failed))


if __name__ == "__main__":
    cli.run(main)
