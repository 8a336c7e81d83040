"""Training on the attributes of a store: one of them by its name, or all at once."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import probex_jax as px
from experiments import cli, view_steps
from probex_jax.engine import HERE, Engine
from probex_jax.experts.chance import shortfall
from probex_jax.fitting import ClosedForm, Devices
from probex_jax.reports.told import asked
from probex_jax.sweeps import default_layers, sweep_attributes

Row = dict[str, object]


def named(config: Mapping[str, Any], told: Sequence[str]) -> dict[str, Any]:
    """A config whose task is an attribute, as one whose labels are; others as they are.

    Args:
      config: of a training.
      told: the tasks that are no attributes.

    Raises:
      ProbexError: if the labels are another column.
    """
    task = config.get("task", "")
    if view_steps.attributes_of(config) is not None:
        if config.get("fit") != "ridge" or config["head"] != "none":
            raise px.ProbexError(
                f"config.task: {task} is for the closed form, as configs/default.py has it; name "
                "one attribute to train on it by gradient descent"
            )
        if config["labels"]:
            raise px.ProbexError(f"config.task: {task} takes columns; leave out config.labels")
        return dict(config)
    if task == px.Number.name and not config["labels"]:
        raise px.ProbexError(f"config.task: {task} is asked of a column; give config.labels")
    if not task or task in told:
        return dict(config)
    if config["labels"] not in ("", task):
        raise px.ProbexError(
            f"config.task: {task!r} is none of {', '.join(told)}, {view_steps.ALL}; if it is an "
            "attribute, leave out config.labels"
        )
    return {**config, "labels": task, "task": ""}


def train(
    config: Mapping[str, Any],
    workdir: Path,
    recipe: ClosedForm,
    *,
    devices: Devices,
    engine: Engine = HERE,
) -> Mapping[str, Any]:
    """Trains one expert on all attributes of the store that a config names; returns the metrics."""
    stores, left_out = view_steps.open_attributes(config["store"], config)
    for name, reason in left_out.items():
        print(cli.one_line(f"attribute {name!r} left out: {reason}"), file=sys.stderr)
    store = next(iter(stores.values()))
    layers: Sequence[str] = (
        px.select_layers(store.layers, config["layers"], store.vectors)
        if config["layers"]
        else default_layers(store, recipe)
    )
    with cli.progress(len(layers), "training", "layer") as bar:

        def done(layer: str, epochs: int) -> None:
            bar.set_postfix_str(layer, refresh=False)
            bar.update(epochs)

        found = sweep_attributes(
            stores,
            workdir,
            encoder=dict(config["encoder"]),
            recipe=recipe,
            normalise=config["normalise"],
            committee=config["committee"] or None,
            layers=layers,
            devices=devices,
            engine=engine,
            on_progress=done,
        )
    for reason in found.metrics["left_out"].values():
        print(cli.one_line(f"left out {reason}"), file=sys.stderr)
    return found.metrics


def rows(metrics: Mapping[str, Any]) -> list[Row]:
    """A row of each attribute that was trained on."""
    return [_row(name, each) for name, each in metrics["attributes"].items()]


def _row(name: str, each: Mapping[str, Any]) -> Row:
    test, covered = each["test_accuracy"], each.get("test_coverage")
    is_number = each["task"]["name"] == px.Number.name
    row: Row = {
        "attribute": name,
        "asked": asked(each),
        "figure": "R²" if is_number else "accuracy",
        "test": f"{test['value']:.3f}",
        "95 % interval": f"{test['low']:.3f} to {test['high']:.3f}",
        "chance": f"{test['chance']:.3f}",
        "models": test["n_models"],
    }
    if covered:
        share = each["conformal"]["coverage"]
        row[f"{share:.0%} covers".replace("%", " %")] = (
            f"{covered['value']:.3f} ({covered['low']:.3f} to {covered['high']:.3f})"
        )
    return {**row, "told by the weights": "yes" if each["told"] else "no"}


def not_above_chance(metrics: Mapping[str, Any]) -> list[str]:
    """A line for each attribute whose figure on test models is not above chance."""
    lines = []
    for name, each in metrics["attributes"].items():
        test = each["test_accuracy"]
        if short := shortfall(test):
            lines.append(f"{name}: {test['value']:.3f} is {short} chance, {test['chance']:.3f}")
    return lines
