"""Labels and splits as the commands take them: columns of stores, files, repeats."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import probex_jax as px
from experiments import cli
from probex_jax.bucket_paths import as_path
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, one_writer, read_json, write_json
from probex_jax.layer_store.tables import check_labels
from probex_jax.model_files.untrusted_text import plain_name
from probex_jax.sweeps.joint import joint_store, views
from probex_jax.zoo import Zoo
from probex_jax.zoo.cells import CLASSES, NUMBERS
from probex_jax.zoo.label_files import classes_of, read_labels
from probex_jax.zoo.model_j import HELD_OUT_SPLITS
from probex_jax.zoo.splitting import check_groups, make_split, ranges_of, too_rare
from probex_jax.zoo.stated_labels import SOURCES
from probex_jax.zoo.tables import SPLITS_FILE, Names, Tables, matched, read_splits

Row = dict[str, object]

ALL = "all"  # of config.task: all attributes; several are separated by commas
# In a work directory: the store, labels and split that were trained on, as they were given.
_VIEW = "view.json"
# Of the classes of a column, so many are named.
_NAMED = 5


def split(
    folder: Path,
    by: str,
    *,
    repeats: int,
    group: str | None,
    name: str,
    labels: str | None,
    fractions: Sequence[str],
    seed: int,
    overwrite: bool,
) -> list[Row]:
    """Writes splits to a zoo's splits.json; returns a row of each."""
    shares = [_number(text) for text in fractions]
    plain_name(name, "--name")
    with one_writer(folder, beside=True):
        if labels and are_sources(labels):
            zoo, labels = px.scan(folder, labels), None
        else:
            zoo = px.scan(folder)
        told_unmatched({}, folder, zoo.notes)
        tables = zoo.tables
        if labels is not None:
            elsewhere, unknown = _labels_in(as_path(labels), Names(m.id for m in zoo.models))
            tables = tables.under(elsewhere)
            told_unmatched({labels: unknown}, folder)
        divided = {m.id for m in zoo.models if m.split not in HELD_OUT_SPLITS and not m.fault}
        said = _classes_in(tables, by, folder) if by else _own_labels(zoo)
        known = {m.id: said[m.id] for m in zoo.models if m.id in said and m.id in divided}
        groups = group and check_groups(_groups_in(tables, group, folder), group)
        made = {
            f"{name}-{number}": make_split(
                known, groups=groups or None, fractions=shares, seed=seed + number
            )
            for number in range(repeats)
        }
        path = folder / SPLITS_FILE
        # As the file has them: others' names of models stay as they are.
        before = {**read_splits(path)} if path.exists() else {}
        for one, parts in made.items():
            if one in before and not overwrite and zoo.tables.splits[one] != parts:
                raise ProbexError(
                    f"{path}: has another split {one!r}; choose another --name or --overwrite it"
                )
        write_json(path, {**before, **made})
    for one, parts in made.items():
        for rare, lacking in too_rare(known, parts).items():
            line = f"{one}: class {rare!r} is too rare to be in {' and '.join(lacking)}"
            print(cli.one_line(line), file=sys.stderr)
    classes = {label for labels_of in known.values() for label in labels_of}
    what = "ranges" if by in tables.numbers else "classes"
    return [
        {
            "split": one,
            "models": len(known),
            "without a label": len(divided) - len(known),
            what: len(classes),
            **{part: len(models) for part, models in parts.items()},
        }
        for one, parts in made.items()
    ]


def are_sources(labels: str) -> bool:
    """Whether a flag names sources of labels as `scan` takes them, and no file."""
    return set(labels.split(",")) <= set(SOURCES) and not Path(labels).exists()


def write_zoos(folder: Path, trees: Sequence[Mapping[str, Path]], labels: str | None) -> None:
    """Writes a zoo for each tree, which names its models where they are.

    Args:
      folder: of the zoos.
      trees: id to path of the models of each.
      labels: a file of labels for all of them; None for what headers say.

    Raises:
      ProbexError: if the folder holds zoos of other models, or the labels are malformed.
    """
    ids = [id for models in trees for id in models]
    tables, unknown = (Tables(), ()) if labels is None else _labels_in(as_path(labels), Names(ids))
    told_unmatched({str(labels): unknown}, folder)
    zoos = {folder / f"tree-{number}": models for number, models in enumerate(trees, start=1)}
    check_zoos(zoos, "choose another folder")
    for zoo, models in zoos.items():
        write_zoo(zoo, models, tables)


def check_zoos(zoos: Mapping[Path, Mapping[str, Path]], way_out: str) -> None:
    """Raises a ProbexError if one of the folders holds a zoo of other models."""
    for zoo, models in zoos.items():
        about = read_json(path) if (path := zoo / "zoo.json").exists() else None
        if about is not None and {**about, "kinds": {}} != {**_about(models), "kinds": {}}:
            raise ProbexError(f"{zoo}: a zoo of other models; {way_out}")


def _about(models: Mapping[str, Path]) -> dict[str, Any]:
    return {"models": {id: str(path.resolve()) for id, path in models.items()}}


def write_zoo(zoo: Path, models: Mapping[str, Path], tables: Tables) -> None:
    """Writes a zoo that names its models where they are, with their labels and splits."""
    with disk_errors(zoo):
        zoo.mkdir(parents=True, exist_ok=True)
    kinds = dict.fromkeys(tables.columns, CLASSES) | dict.fromkeys(tables.numbers, NUMBERS)
    write_json(zoo / "zoo.json", _about(models) | ({"kinds": kinds} if kinds else {}))
    if kinds:
        columns = {**tables.columns, **tables.numbers}
        rows = [
            {"model": id} | {name: said[id] for name, said in columns.items() if id in said}
            for id in models
        ]
        write_json(zoo / "labels.json", rows)
    if tables.splits:
        write_json(zoo / SPLITS_FILE, tables.splits)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ProbexError(f"--fractions: expected numbers, found {text!r}") from None


def _own_labels(zoo: Zoo) -> dict[str, tuple[str, ...]]:
    """What labels.json without columns or the headers say; models that cannot be read have none."""
    found = {}
    for model in zoo.models:
        try:
            with model.open() as file:
                labels = model.labels_in(file)
        except ProbexError:
            continue
        found[model.id] = labels
    if not found:
        raise ProbexError("--by: give a label column; nothing else says what the models learnt")
    return found


def _labels_in(path: Path, names: Names) -> tuple[Tables, tuple[str, ...]]:
    """A file of labels elsewhere, by the ids of models, and names that no model has.

    Of a file that names no column, the column is called as the file.
    """
    labels, unknown = matched(read_labels(path), names, path)
    told_unmatched({}, path, labels.notes)
    columns = dict(labels.columns)
    if own := columns.pop("", {}):
        columns[path.stem] = {m: classes_of(said, f"{path}: {m!r}") for m, said in own.items()}
    return Tables(columns, labels.numbers), unknown


def _classes_in(tables: Tables, by: str, where: object) -> Mapping[str, tuple[str, ...]]:
    """The classes of a column; of one of numbers the range that a model is in."""
    if by in tables.numbers:
        return ranges_of(tables.number(by, where))
    return tables.column(by, where)


def _groups_in(tables: Tables, group: str, where: object) -> Mapping[str, tuple[str, ...]]:
    if group in tables.numbers:
        return {id: (str(n),) for id, n in tables.number(group, where).items()}
    return tables.column(group, where)


def told_unmatched(
    unmatched: Mapping[str, Sequence[str]], where: object, notes: Iterable[str] = ()
) -> None:
    """A line on standard error for each note, and each name in a file of labels without a model."""
    for note in notes:
        print(cli.one_line(note), file=sys.stderr)
    for file, names in unmatched.items():
        for name in names:
            print(cli.one_line(f"{file}: no model {name!r} in {where}"), file=sys.stderr)


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
    """The attributes that a config names to train on together, none for all; None if it does not."""
    task = config.get("task", "")
    if task == ALL:
        return ()
    return tuple(filter(None, map(str.strip, task.split(",")))) if "," in task else None


def open_attributes(
    store: str | Path, config: Mapping[str, Any]
) -> tuple[dict[str, px.LayerStore], dict[str, str]]:
    """Each attribute of a store with its view, and why others are left out; errors as `views`.

    Args:
      store: its folder.
      config: names them and the split, as `open_view` takes it.
    """
    opened, name = _with_split(px.LayerStore.open(store), config["split"])
    return views(opened, name, attributes_of(config) or ())


def _with_labels(store: px.LayerStore, labels: str) -> tuple[px.LayerStore, str]:
    path, column = _file(labels, store.attributes)
    if path is None:
        return store, labels
    tables, unknown = _labels_in(path, _names(store))
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


def _with_split(store: px.LayerStore, split: str) -> tuple[px.LayerStore, str]:
    path, name = _file(split, store.splits)
    if path is None:
        return store, split
    return store.with_tables(Tables(splits=read_splits(path, _names(store)))), name


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
    if not (config["labels"] or config["split"] or config["task"]):
        return
    store = px.LayerStore.open(config["store"])
    given = {
        "labels": _absolute(config["labels"], store.attributes),
        "split": _absolute(config["split"], store.splits),
        "task": config["task"],
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


def tables_lines(store: px.LayerStore) -> list[str]:
    """A line about each column of a store, and one about its splits."""
    lines = []
    for name, column in store.tables.columns.items():
        packed = [column[model.id] for model in store.packed if model.id in column]
        classes = sorted({label for labels in packed for label in labels})
        of = f"labels {name}" if name else "labels in headers"
        several = "class" if len(classes) == 1 else "classes"
        named = ", ".join(classes[:_NAMED]) + (", …" if len(classes) > _NAMED else "")
        lines.append(f"{of}: {len(classes)} {several}, {len(packed)} models: {named}")
    for name, numbers in store.tables.numbers.items():
        found = [numbers[model.id] for model in store.packed if model.id in numbers]
        between = f": {min(found):g} to {max(found):g}" if found else ""
        lines.append(f"numbers {name}: {len(found)} models{between}")
    return lines + ([f"splits: {', '.join(store.splits)}"] if store.splits else [])


def warn_of_labels(store: px.LayerStore) -> None:
    """A line on standard error for each class that is hard to learn."""
    column = f"{store.path}: column {store.label_set!r}" if store.label_set else store.path
    for line in check_labels(column, store.models):
        print(cli.one_line(line), file=sys.stderr)
