"""The steps that the commands and the demo share, with their progress bars and table rows."""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from operator import length_hint
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

import probex_jax as px
from experiments import cli, joint_steps, label_steps, view_steps
from probex_jax.engine import HERE, Engine
from probex_jax.experts import Alignment, ZeroShot
from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.files import one_writer
from probex_jax.fitting import Adam, ClosedForm, Devices
from probex_jax.language import CachedEncoder, default_cache, text_encoder
from probex_jax.layer_store import PackSummary
from probex_jax.search import FoundModel, Index, Measured, Subject, measure_all
from probex_jax.sweeps import default_layers, run_statnn, sweep
from probex_jax.zoo import Zoo
from probex_jax.zoo.model_j import SPLITS

Row = dict[str, object]
# What labels can tell, by the names in configs.
TOLD = {task.name: task for task in (px.OneClass(), px.SeveralClasses(), px.Number())}
_NAMED = 3  # names that a line gives
_SHOWN = 24  # layers in a table; the report has all
_MEAN = "what always giving the mean has"
_COMMONEST, _GUESSING = "what always giving the commonest answer has", "what guessing has"
AUC = "AUC, chance .5"


def pack(
    zoo: Path,
    store: Path,
    layers: str = "",
    labels: str = "",
    engine: Engine = HERE,
    readers: int = 2,
) -> PackSummary:
    """Packs a zoo; what is skipped goes to standard error, a line each."""
    found = _scanned(zoo, labels) if labels else px.scan(zoo)
    label_steps.told_unmatched(found.unmatched, zoo, found.notes)
    with cli.progress(0, "packing", "model") as bar:
        summary = px.pack(
            found,
            store,
            layers or None,
            readers=readers,
            engine=engine,
            on_models=bar.reset,
            on_model=lambda fault: _reported(bar, "skipped", fault),
        )
    if summary.unscaled:
        print(
            f"{summary.unscaled} LoRAs say no alpha for some layers: their scale is taken to be 1",
            file=sys.stderr,
        )
    if summary.unread:
        print(
            f"{summary.unread} models have tensors of adapters that are not read; "
            "ModelFile.unread lists them with the reason",
            file=sys.stderr,
        )
    for line in _left_out(summary.left_out):
        print(cli.one_line(line), file=sys.stderr)
    return summary


def _scanned(zoo: Path, labels: str) -> Zoo:
    """A zoo with the labels that its models state."""
    with cli.progress(0, "reading labels", "model") as bar:

        def seen(fault: str) -> None:  # packing tells what cannot be read
            bar.update()

        return px.scan(zoo, labels, on_model=seen)


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason, with some of the names."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"left out {', '.join(names[:_NAMED])}"
        + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
        + f": {reason}"
        for reason, names in by_reason.items()
    ]


def _reported(bar: tqdm, what: str, fault: str) -> None:
    bar.update()
    if fault:
        bar.write(cli.one_line(f"{what} {fault}"), file=sys.stderr)


def pack_row(summary: PackSummary) -> Row:
    """A store that was packed."""
    store = summary.store
    return {
        "tree": store.tree,
        "layers": len(store.layers),
        "vectors": len(store.vectors),
        "models": len(store.packed),
        **{s: count for s in SPLITS if (count := sum(m.split == s for m in store.models))},
        "added": summary.added,
        "skipped": len(summary.skipped),
    }


def train(
    config: Mapping[str, Any],
    workdir: Path,
    store: px.LayerStore | None = None,
    *,
    devices: Devices | None = None,
    engine: Engine = HERE,
) -> Mapping[str, Any]:
    """Trains what a config says, on the store given or the one it names; returns the metrics.

    `devices` and `engine` are as `sweep` takes them; without, it is done on all devices of this
    process.
    """
    devices = devices or Devices.of(jax.local_devices())
    config = joint_steps.named(config, tuple(TOLD))
    if store is None:
        if not config["store"]:
            raise px.ProbexError("give --config.store, a layer store; probex pack makes one")
        view_steps.warn_of_split(config)
        store = view_steps.opened_as(config["store"], config)
    joint = view_steps.attributes_of(config) is not None
    if not store.is_number and not joint:
        label_steps.warn_of_labels(store)
    encoder = dict(config["encoder"])
    by_steps = encoder["name"] != "statnn" and config["fit"] == "adam"
    if devices.processes > 1 and not by_steps:
        raise px.ProbexError(
            "the closed form and StatNN need no processes that train together: leave out "
            "--coordinator or --cluster; --engine=ray:… divides the layers of the closed form"
        )
    if encoder["name"] == "statnn":
        if not engine.is_here:
            raise px.ProbexError("StatNN runs in this process: leave out --engine")
        seed = config["recipe"]["seed"]
        return run_statnn(store, workdir, n_trees=encoder["n_trees"], seed=seed)
    try:
        recipe = {"adam": Adam, "ridge": ClosedForm}[config["fit"]](**config["recipe"])
    except KeyError:
        raise px.ProbexError(f"config.fit: {config['fit']!r} is not one of adam, ridge") from None
    except TypeError as error:
        raise px.ProbexError(f"config.recipe: {error}") from None
    if joint:
        assert isinstance(recipe, ClosedForm)
        return joint_steps.train(config, workdir, recipe, devices=devices, engine=engine)
    if config["layers"]:
        layers: Sequence[str] = px.select_layers(store.layers, config["layers"], store.vectors)
    else:
        layers = default_layers(store, recipe)
    alignment = _alignment(config["text"]) if config["head"] == "text" else None
    settings: dict[str, Any] = {"grid": {}}
    if by_steps:
        grid = {field: list(values) for field, values in config["grid"].items() if values}
        settings = {"grid": grid, "stream": config["stream"], "devices": devices}
    elif config["fit"] == "ridge" and any(config.get("grid", {}).values()):
        raise px.ProbexError("config.grid: the closed form tries its penalties itself")
    tried = math.prod(map(len, settings["grid"].values()))
    each, unit = (tried * recipe.epochs, "epoch") if isinstance(recipe, Adam) else (1, "layer")
    with cli.progress(each * len(layers), "training", unit) as bar:
        metrics = sweep(
            store,
            workdir,
            encoder=encoder,
            head=config["head"],
            recipe=recipe,
            alignment=alignment,
            normalise=config["normalise"],
            committee=config["committee"] or None,
            task=_task(config["task"]),
            layers=layers,
            engine=engine,
            save_every_s=config["save_every_s"],
            stop=cli.STOP,
            on_progress=lambda layer, epochs: _trained(bar, layer, epochs),
            **settings,
        ).metrics
    for reason in metrics["left_out"].values():
        print(cli.one_line(f"left out {reason}"), file=sys.stderr)
    return metrics


def _task(name: str) -> px.Task | None:
    """What a config asks; None to be told by the labels, as numbers are."""
    return TOLD[name] if name and name != px.Number.name else None


def _alignment(text: Mapping[str, Any]) -> Alignment:
    return Alignment(
        CachedEncoder(text_encoder(text["encoder"]), default_cache()),
        spec=text["encoder"],
        template=text["template"],
        logit_scale=text["logit_scale"],
        tags=text["tags"],
    )


def _trained(bar: tqdm, layer: str, epochs: int) -> None:
    bar.set_postfix_str(layer, refresh=False)
    bar.update(epochs)


def index(
    expert: px.Expert,
    models: Iterable[FoundModel],
    path: Path,
    *,
    prune: bool = False,
    forest: px.Forest | None = None,
    engine: Engine = HERE,
    readers: int = 4,
) -> tuple[Index, Row]:
    """Brings an index up to date; what cannot be embedded goes to standard error, a line each."""
    with one_writer(path):
        found = Index.create_or_open(path, expert)
        with cli.progress(length_hint(models), "indexing", "model") as bar:
            done = found.add_models(
                models,
                forest=forest,
                engine=engine,
                readers=readers,
                on_model=lambda fault: _reported(bar, "failed", fault),
            )
        if not len(found) and done.failed:
            found.discard_if_new()
            first = next(iter(done.failed.values()))
            raise px.ProbexError(f"{path}: no model could be indexed; the first: {first}")
        pruned = found.prune() if prune else 0
        recall = found.optimise()
    row: Row = {
        "tree": expert.card.tree,
        "layer": expert.reading,
        "added": done.added,
        "updated": done.updated,
        "unchanged": done.unchanged,
        "pruned": pruned,
        "failed": len(done.failed),
        "models": len(found),
    }
    return found, row if recall is None else {**row, "recall@10": recall}


def evaluate(subject: Subject, tasks: Sequence[str], workdir: Path) -> list[Measured]:
    """Measures the tasks; one that cannot be is reported on standard error, the others go on."""
    expert = subject.experts["val"]
    if expert.card.text is not None and subject.encoder is None:
        encoder = CachedEncoder(expert.text_encoder(), default_cache())
        subject = dataclasses.replace(subject, encoder=encoder)
    with cli.progress(len(tasks), "evaluating", "task") as bar:
        return measure_all(
            subject,
            tasks,
            workdir,
            on_task=lambda fault: _reported(bar, "not measured:", fault),
        )


def measured_row(figure: Measured) -> Row:
    """A figure that was measured."""
    return {
        "task": figure.task,
        "figure": figure.what,
        "classes": f"{figure.n_classes} {figure.classes}",
        "value": f"{figure.score.value:.3f}",
        "95 % interval": f"{figure.score.low:.3f} to {figure.score.high:.3f}",
        "chance": f"{figure.chance:.3f}",
        "models": figure.score.n_models,
    }


def class_rows(figures: Sequence[Measured]) -> Sequence[Row]:
    """What is known by class; none where there is nothing."""
    rows: dict[str, Row] = {}
    for figure in figures:
        for name, value in figure.by_class.items():
            row = rows.setdefault(name, {"class": name, "accuracy": "", "chance": "", AUC: ""})
            if figure.is_accuracy:
                row |= {"accuracy": value, "chance": figure.chance_by_class[name]}
            else:
                row[AUC] = value
    return list(rows.values())


def train_row(metrics: Mapping[str, Any]) -> Row:
    """The result of a training."""
    test = metrics["test_accuracy"]
    row: Row = {
        "tree": metrics["tree"],
        "method": method(metrics),
        "layer": _reading(metrics),
        f"test {_figure(metrics)}": f"{test['value']:.3f}",
        "95 % interval": f"{test['low']:.3f} to {test['high']:.3f}",
        "chance": "" if (chance := chance_of(test)) is None else f"{chance:.3f}",
        **({AUC: f"{metrics['test_auc']['value']:.3f}"} if "test_auc" in metrics else {}),
        "models": test["n_models"],
        "calibration error": _calibration_error(metrics),
    }
    if "zero_shot" in metrics:
        found = ZeroShot.from_json(metrics["zero_shot"])
        row[f"zero-shot among {found.n_held_out}"] = str(found.among_held_out)
        row[f"among all {found.n_all}"] = str(found.among_all)
        if found.seen_among_all is not None:
            row[f"seen, among all {found.n_all}"] = str(found.seen_among_all)
    return row


def _figure(metrics: Mapping[str, Any]) -> str:
    """What the accuracy of a training is called."""
    return "R²" if metrics["task"] == px.Number.name else "accuracy"


def not_above_chance(metrics: Mapping[str, Any]) -> list[str]:
    """A line for each accuracy of a training that is not above chance."""
    usual = _MEAN if metrics["task"] == px.Number.name else _COMMONEST
    lines = [_short(f"test {_figure(metrics)}", metrics["test_accuracy"], usual)]
    if "test_auc" in metrics:
        lines.append(_short("test AUC", metrics["test_auc"], _GUESSING))
    if "zero_shot" in metrics:
        found = ZeroShot.from_json(metrics["zero_shot"])
        among, every = f"zero-shot among {found.n_held_out}", f"among all {found.n_all}"
        lines += [
            _short(f"accuracy {among}", vars(found.among_held_out), _COMMONEST),
            _short(f"accuracy {every}", vars(found.among_all), _COMMONEST),
        ]
    return [line for line in lines if line]


def measured_not_above_chance(figures: Sequence[Measured]) -> list[str]:
    """A line for each figure that is not above chance."""
    lines = [
        _short(
            f"{figure.task}: {figure.what} ({figure.n_classes} {figure.classes})",
            {**vars(figure.score), "chance": figure.chance},
            _COMMONEST if figure.is_accuracy else _GUESSING,
        )
        for figure in figures
    ]
    return [line for line in lines if line]


def _short(what: str, score: Mapping[str, Any], has: str) -> str:
    short = shortfall(score)
    return short and f"{what} {score['value']:.3f} is {short} {score['chance']:.3f}, {has}"


def _calibration_error(metrics: Mapping[str, Any]) -> str:
    """On test models, before and after; nothing for what gives no calibrated probabilities."""
    if "calibration" not in metrics:
        return ""
    return " → ".join(f"{metrics['calibration'][when]['test']:.3f}" for when in ("before", "after"))


def method(metrics: Mapping[str, Any]) -> str:
    """The encoder, with what else tells methods apart."""
    name = metrics["encoder"]["name"]
    by_ridge = ", ridge" if "penalties" in metrics["recipe"] else ""
    return f"{'centred ' * (metrics.get('normalise') == 'centre')}{name}{by_ridge}"


def _reading(metrics: Mapping[str, Any]) -> str:
    layers = metrics.get("layers", {}).get("expert", ())
    return layers[0] if len(layers) == 1 else f"{len(layers) or 'all'} layers"


def layer_rows(metrics: Mapping[str, Any]) -> Sequence[Row]:
    """The layers that are most accurate where they were chosen; none where a method has none."""
    accuracies = metrics.get("val_accuracy_by_layer", {})
    crossed = metrics.get("selected_on") == "cross-validation"
    what = f"{'cross-validated' if crossed else 'validation'} {_figure(metrics)}"
    beside = {"chance": metrics["val_chance"]} if "val_chance" in metrics else {}
    best = sorted(accuracies, key=accuracies.__getitem__, reverse=True)[:_SHOWN]
    return [{"layer": name, what: accuracies[name], **beside} for name in best]
