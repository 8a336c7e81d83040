r"""Trains an expert on the layers of a tree, and tests it.

Every choice is made without the test models, which are used once, at the end. Run it again to
resume. WORKDIR/report.html shows the results; open it in a browser.

--config.labels names a label column, --config.split a split. If a split has repeats, NAME-0, NAME-1
and so on, NAME trains on each, in WORKDIR/NAME-0 and so on, and reports mean and spread.
--config.task=NAME trains on a column of the models' table, =all on all columns at once.

Example:
  probex train --workdir=out/all --forest=out/forest \
    --config.store=out/stores/mine --config.task=all
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from absl import flags

from experiments import (
    cli,
    engines,
    forest_steps,
    joint_steps,
    processes,
    repeats,
    report_steps,
    steps,
    view_steps,
)
from experiments.costs import Costs
from probex_jax.bucket_paths import as_path
from probex_jax.claims import claim, settings_of
from probex_jax.engine import Engine
from probex_jax.errors import ProbexError
from probex_jax.experts import Expert
from probex_jax.files import one_writer
from probex_jax.fitting import Devices
from probex_jax.forest import TreeRouter

_CONFIG = cli.config(
    "configs/default.py",
    "What to train, and how; other methods are in configs/. --config.store, the layer store, must "
    "be given.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
_FOREST = flags.DEFINE_string(
    "forest", None, "Forest to which the tree and its expert are added, as grow_forest does."
)


def main() -> None:
    engine = engines.engine()
    devices = processes.join(engine)
    config, workdir = _CONFIG.value.to_dict(), as_path(_WORKDIR.value)
    config = joint_steps.named(config, tuple(steps.TOLD))
    found = view_steps.repeats(config)
    # A folder of one writer, of all processes that train together.
    with one_writer(workdir) if devices.writes else nullcontext():
        if _FOREST.value and not found and devices.writes:
            _check_tree(as_path(_FOREST.value), config)
        if not found:
            metrics = _train(config, workdir, devices, engine)
            if devices.writes:
                _report(metrics, workdir)
                if _FOREST.value:
                    print(cli.table(_grown(as_path(_FOREST.value), config, workdir)))
            return
        if _FOREST.value:
            raise ProbexError("--forest: of repeats choose one expert, and give it to grow_forest")
        if devices.writes:
            claim(
                workdir,
                {name: config[name] for name in ("labels", "split", "task") if name in config},
            )
        trained = {}
        for name, split in found.items():
            metrics = _train({**config, "split": split}, workdir / name, devices, engine)
            if devices.writes:
                _write_report(metrics, workdir / name)
            trained[name] = metrics
        if devices.writes:
            _report_all(trained, workdir)


def _check_tree(forest: Path, config: Mapping[str, Any]) -> None:
    """Raises a ProbexError, before hours of training, if the store cannot be a tree of a forest."""
    store = view_steps.opened_as(config["store"], config)
    if not (forest / "trees" / store.tree).exists():
        TreeRouter.fit(store)


def _grown(forest: Path, config: Mapping[str, Any], workdir: Path) -> list[dict[str, object]]:
    store = view_steps.opened_as(config["store"], config)
    return forest_steps.grow_forest(forest, [store], [Expert.load(workdir)], {})


def _train(
    config: Mapping[str, Any], workdir: Path, devices: Devices, engine: Engine
) -> Mapping[str, Any]:
    """Trains on one split, and keeps what it cost."""
    costs = Costs(workdir, devices.writes)
    with one_writer(workdir) if devices.writes else nullcontext():
        with costs.step("training, choosing and testing", workdir / "config.json"):
            metrics = steps.train(config, workdir, devices=devices, engine=engine)
        if devices.writes:
            view_steps.write_view(workdir, config)
    return metrics


def _report(metrics: Mapping[str, Any], workdir: Path) -> None:
    if "attributes" in metrics:
        print(cli.table(joint_steps.rows(metrics)))
        for line in joint_steps.not_above_chance(metrics):
            print(line)
        print(f"report: {_write_report(metrics, workdir)}")
        return
    rows = steps.layer_rows(metrics)
    if rows:
        print(cli.table(rows), end="\n\n")
    print(cli.table([steps.train_row(metrics)]))
    for line in steps.not_above_chance(metrics):
        print(line)
    print(f"report: {_write_report(metrics, workdir)}")


def _write_report(metrics: Mapping[str, Any], workdir: Path) -> Path:
    found = report_steps.training(workdir, metrics)
    return report_steps.write_report(workdir, f"Training on {metrics['tree']}", [found])


def _report_all(trained: Mapping[str, Any], workdir: Path) -> None:
    """Mean and spread over repeats."""
    about = settings_of(workdir)
    summary = repeats.write_summary(workdir / "metrics.json", about, trained)
    if "attributes" not in next(iter(trained.values())):
        print(
            cli.table([{"split": n, **steps.train_row(m)} for n, m in trained.items()]), end="\n\n"
        )
    print(cli.table(repeats.rows(summary)))
    for line in repeats.not_above_chance(summary):
        print(line)
    print(f"reports: {', '.join(str(workdir / name / report_steps.NAME) for name in trained)}")


if __name__ == "__main__":
    cli.run(main)
