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
from probex_jax.zoo import Zoo
from probex_jax.zoo.cells import CLASSES, NUMBERS
from probex_jax.zoo.label_files import classes_of, read_labels
from probex_jax.zoo.model_j import HELD_OUT_SPLITS
from probex_jax.zoo.splitting import check_groups, make_split, ranges_of, too_rare
from probex_jax.zoo.stated_labels import SOURCES
from probex_jax.zoo.tables import SPLITS_FILE, Names, Tables, matched, read_splits

Row = dict[str, object]

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
            elsewhere, unknown = labels_in(as_path(labels), Names(m.id for m in zoo.models))
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
    tables, unknown = (Tables(), ()) if labels is None else labels_in(as_path(labels), Names(ids))
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


def labels_in(path: Path, names: Names) -> tuple[Tables, tuple[str, ...]]:
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
