"""Stores with the labels and the split that a config names: views of one column, or of several."""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import probex_jax as px
from experiments import cli
from experiments.label_steps import labels_in
from probex_jax.bucket_paths import as_path
from probex_jax.errors import ProbexError
from probex_jax.files import read_json, write_json
from probex_jax.sweeps.joint import attribute_views, joint_store
from probex_jax.zoo.splitting import make_split, ranges_of
from probex_jax.zoo.tables import Names, Tables, read_splits

ALL = "all"  # of config.task: all attributes; several are separated by commas
OWN_SPLIT = "own"  # of a store that is in no split folders, and has no splits
# In a work directory: the store, labels and split that were trained on, as they were given.
_VIEW = "view.json"


def open_view(store: str | Path, labels: str, split: str, number: bool = False) -> px.LayerStore:
    """A store with the labels and the split that a config names; as it is where it names none.

    Args:
      store: its folder.
      labels: a column of the store, FILE:COLUMN, or FILE if that has one column; or "".
      split: a split of the store, or FILE:NAME; or "".
      number: whether a column of classes that are numbers is read as one of numbers.

    Raises:
      ProbexError: if there is no such store, column or split, or a file is malformed.
    """
    opened = px.LayerStore.open(store)
    opened, column = _with_labels(opened, labels)
    opened, name = _with_split(opened, split)
    in_folders = any(opened.folders.values())
    as_packed = in_folders and not (labels or split or number)
    return opened if as_packed else opened.view(column, name, number)


def attributes_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The attributes that a config trains on together, () for all; None for what is no such."""
    task = config.get("task", "")
    if task == ALL:
        return ()
    if "," in task and not task.replace(",", "").strip():
        raise ProbexError(f"config.task: {task!r} names no attribute")
    names = next(csv.reader([task], skipinitialspace=True), [])  # a name with a comma is quoted
    return tuple(filter(None, map(str.strip, names))) if "," in task else None


def open_attributes(
    store: str | Path, config: Mapping[str, Any]
) -> tuple[dict[str, px.LayerStore], dict[str, str]]:
    """Each attribute of a store with its view, and why others are left out.

    Args:
      store: its folder.
      config: names them and the split, as `open_view` takes it.
    """
    opened, name = _with_split(px.LayerStore.open(store), config["split"])
    if not name and not any(opened.folders.values()):
        known = ", ".join(opened.splits)
        raise ProbexError(f"{opened.path}: give one of its splits as config.split: {known}")
    return attribute_views(opened, name, attributes_of(config) or ())


def _with_labels(store: px.LayerStore, labels: str) -> tuple[px.LayerStore, str]:
    path, column = _file(labels, store.attributes)
    if path is None:
        return store, labels
    tables, unknown = labels_in(path, _names(store))
    if unknown:
        some = f"{len(unknown)} of its models are not in {store.path}, such as {unknown[0]!r}"
        print(cli.one_line(f"{path}: {some}"), file=sys.stderr)
    known = (*tables.columns, *tables.numbers)
    if not known:
        raise ProbexError(f"{path}: no column that says something of a model")
    if not column and len(known) != 1:
        raise ProbexError(f"{path}: give one of its columns, as {path}:{known[0]}")
    column = column or known[0]
    tables.check(column, path)
    return store.with_tables(tables), column


def opened_as(store: str | Path, config: Mapping[str, Any]) -> px.LayerStore:
    """A store with what a config trains on: one view, or the models of all attributes."""
    if attributes_of(config) is not None:
        return joint_store(open_attributes(store, config)[0])
    number = config.get("task") == px.Number.name
    return open_view(store, config["labels"], config["split"], number)


def warn_of_split(config: Mapping[str, Any]) -> None:
    """A line on standard error where a store has no split, and one is made."""
    opened = px.LayerStore.open(config["store"])
    store, name = _with_split(opened, config["split"])
    if name == OWN_SPLIT and OWN_SPLIT not in opened.splits:
        counts = {part: len(models) for part, models in store.tables.splits[name].items()}
        divided = ", ".join(f"{count} {part}" for part, count in counts.items())
        line = f"{store.path}: no split; divided into {divided}. probex split makes others"
        print(cli.one_line(line), file=sys.stderr)


def _with_split(store: px.LayerStore, split: str) -> tuple[px.LayerStore, str]:
    path, name = _file(split, store.splits)
    if path is not None:
        return store.with_tables(Tables(splits=read_splits(path, _names(store)))), name
    if split or store.splits or any(store.folders.values()):
        return store, split
    return store.with_tables(Tables(splits={OWN_SPLIT: _own_split(store)})), OWN_SPLIT


def _own_split(store: px.LayerStore) -> dict[str, tuple[str, ...]]:
    """A split of a store that has none: each part has its share of all classes and numbers."""
    tables = store.tables
    said = [*tables.columns.items(), *((n, ranges_of(x)) for n, x in tables.numbers.items())]
    labels = {
        model.id: [f"{column}: {name}" for column, of in said for name in of.get(model.id, ())]
        for model in store.packed
    }
    return make_split(labels)


def _names(store: px.LayerStore) -> Names:
    return Names([model.id for model in store.packed] + list(store.skipped))


def _file(given: str, known: Sequence[str]) -> tuple[Path | None, str]:
    """The file and the name in it that are meant by FILE:NAME or FILE; None for a known name."""
    if not given or given in known:
        return None, given
    if as_path(given).is_file():
        return as_path(given), ""
    file, colon, name = given.rpartition(":")
    return (as_path(file), name) if colon else (None, given)


def repeats(config: Mapping[str, Any]) -> dict[str, str]:
    """The splits that a config means by the name that they have in common.

    Returns:
      Name of a split to what names it in a config; none where a single split is meant.
    """
    if not (config["store"] and config["split"]):
        return {}
    store, name = _with_split(px.LayerStore.open(config["store"]), config["split"])
    if name in store.splits:
        return {}
    numbers = sorted(
        int(number)
        for stem, _, number in (one.rpartition("-") for one in store.splits)
        if stem == name and number.isdecimal()
    )
    given = config["split"]
    return {f"{name}-{number}": f"{given}-{number}" for number in numbers}


def write_view(workdir: Path, config: Mapping[str, Any]) -> None:
    """Keeps beside the experts what they were trained on, for `store_of`."""
    if not (config["labels"] or config["split"] or config.get("task", "")):
        return
    store = px.LayerStore.open(config["store"])
    given = {
        "labels": _absolute(config["labels"], store.attributes),
        "split": _absolute(config["split"], store.splits),
        "task": config.get("task", ""),
    }
    write_json(workdir / _VIEW, {**given, "store": str(store.path.resolve())})


def _absolute(given: str, known: Sequence[str]) -> str:
    path, name = _file(given, known)
    return given if path is None else f"{path.resolve()}{f':{name}' * bool(name)}"


def store_of(experts: str | Path, store: str | None = None) -> px.LayerStore:
    """The store with the labels and split that experts were trained on.

    Args:
      experts: a work directory of a training, or an expert in it.
      store: the folder of the store; None for the one that they were trained on.

    Raises:
      ProbexError: if that is not known, or as `open_view`.
    """
    for folder in (as_path(experts), as_path(experts).parent):
        if (folder / _VIEW).exists():
            about = read_json(folder / _VIEW)
            try:
                return opened_as(store or about["store"], about)
            except (TypeError, KeyError) as error:
                raise ProbexError(f"{folder / _VIEW}: damaged ({error}); remove it") from error
    if store is None:
        raise ProbexError("give --store, the layer store that the experts were trained on")
    return px.LayerStore.open(store)
