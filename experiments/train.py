r"""Trains an expert on the layers of a tree, and tests it.

What answers is chosen without the test models, which are asked once. Run the same command again to
resume. WORKDIR/report.html shows what was found; open it in a browser.

--config.labels is a label column, --config.split a split: of one whose repeats are NAME-0, NAME-1
and so on, NAME trains on all, in WORKDIR/NAME-0 and so on, and reports mean and spread.

Without --config it is configs/default.py: a linear ProbeX on all layers, in closed form.

Example:
  python -m experiments.train --workdir=out/trained \
    --config.store=out/stores/MiniSupViT
  python -m experiments.train --workdir=out/gain \
    --config.store=out/stores/mine --config.labels=gain --config.split=gain
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli, label_steps, processes, repeats, report_steps, steps
from experiments.costs import Costs
from probex_jax.bucket_paths import as_path
from probex_jax.claims import claim, settings_of
from probex_jax.files import alone, one_writer
from probex_jax.fitting import Devices

_CONFIG = cli.config(
    "configs/default.py",
    "What to train, and how; other methods are in configs/. --config.store, the layer store, must "
    "be given.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)


def main() -> None:
    devices, share = processes.join()
    config, workdir = _CONFIG.value.to_dict(), as_path(_WORKDIR.value)
    found = label_steps.repeats(config)
    if not found:
        metrics = _train(config, workdir, devices, share)
        if devices.writes:
            _report(metrics, workdir, share[1] > 1)
        return
    if devices.writes:
        claim(workdir, {name: config[name] for name in ("labels", "split")})
    trained = {}
    for name, split in found.items():
        metrics = _train({**config, "split": split}, workdir / name, devices, share)
        if devices.writes:
            _write_report(metrics, workdir / name, share[1] > 1)
        trained[name] = metrics
    if devices.writes:
        _report_all(trained, workdir, share[1] > 1)


def _train(
    config: Mapping[str, Any], workdir: Path, devices: Devices, share: tuple[int, int]
) -> Mapping[str, Any]:
    """Trains on one split, and keeps what it cost."""
    step, parallel = "training, choosing and testing", share[1] > 1
    # Of several processes the first writes the config: it tells of no earlier run.
    made = None if parallel else workdir / "config.json"
    if parallel:
        step += f", process {share[0]} of {share[1]}"
    # Of several processes that divide the layers, each holds the folder while it trains.
    with one_writer(workdir) if devices.writes and not parallel else nullcontext():
        with Costs(workdir, devices.writes).step(step, made, parallel=parallel):
            metrics = steps.train(config, workdir, devices=devices, share=share)
        if devices.writes:
            label_steps.write_view(workdir, config)
    return metrics


def _report(metrics: Mapping[str, Any], workdir: Path, parallel: bool) -> None:
    rows = steps.layer_rows(metrics)
    if rows:
        print(cli.table(rows), end="\n\n")
    print(cli.table([steps.train_row(metrics)]))
    for line in steps.not_above_chance(metrics):
        print(line)
    print(f"report: {_write_report(metrics, workdir, parallel)}")


def _write_report(metrics: Mapping[str, Any], workdir: Path, parallel: bool) -> Path:
    with alone(workdir / ".lock", needed=parallel):
        found = report_steps.training(workdir, metrics)
        return report_steps.write_report(workdir, f"Training on {metrics['tree']}", [found])


def _report_all(trained: Mapping[str, Any], workdir: Path, parallel: bool) -> None:
    """Mean and spread over repeats."""
    about = settings_of(workdir)
    with alone(workdir / ".lock", needed=parallel):
        summary = repeats.write_summary(workdir / "metrics.json", about, trained)
    print(cli.table([{"split": n, **steps.train_row(m)} for n, m in trained.items()]), end="\n\n")
    print(cli.table(repeats.rows(summary)))
    for line in repeats.not_above_chance(summary):
        print(line)
    print(f"reports: {', '.join(str(workdir / name / report_steps.NAME) for name in trained)}")


if __name__ == "__main__":
    cli.run(main)
