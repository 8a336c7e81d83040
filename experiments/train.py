r"""Trains an expert on every layer, and tests the best of them.

The layer, or the few layers together, that do best on the validation models are tested once. Run
the same command again to resume. WORKDIR/report.html shows what was found; open it in a browser.

Without --config it is configs/default.py: ridge regression on centred matrices, in closed form.

Example:
  python -m experiments.train --workdir=out/trained \
    --config.store=out/stores/MiniSupViT
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli, processes, report_steps, steps
from experiments.costs import Costs
from probex_jax.files import alone, one_writer

_CONFIG = cli.config(
    "configs/default.py",
    "What to train, and how; other methods are in configs/. --config.store, the layer store, must "
    "be given.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)


def main() -> None:
    devices, share = processes.join()
    workdir = Path(_WORKDIR.value)
    step, parallel = "training, choosing and testing", share[1] > 1
    # Of several processes the first writes the config: it tells of no earlier run.
    made = None if parallel else workdir / "config.json"
    if parallel:
        step += f", process {share[0]} of {share[1]}"
    # Of several processes that divide the layers, each holds the folder while it trains.
    with one_writer(workdir) if devices.writes and not parallel else nullcontext():
        with Costs(workdir, devices.writes).step(step, made, parallel=parallel):
            metrics = steps.train(_CONFIG.value.to_dict(), workdir, devices=devices, share=share)
        if devices.writes:
            _report(metrics, workdir, parallel)


def _report(metrics: Mapping[str, Any], workdir: Path, parallel: bool) -> None:
    rows = steps.layer_rows(metrics)
    if rows:
        print(cli.table(rows), end="\n\n")
    print(cli.table([steps.train_row(metrics)]))
    for line in steps.not_above_chance(metrics):
        print(line)
    with alone(workdir / ".lock", needed=parallel):
        found = report_steps.training(workdir, metrics)
        path = report_steps.write_report(workdir, f"Training on {metrics['tree']}", [found])
    print(f"report: {path}")


if __name__ == "__main__":
    cli.run(main)
