"""Tables beside the models of a zoo: label columns (`label_files`) and splits, as `splits.json`.

Tables name models as people do: by id or by file name, with or without suffix and folders.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from probex_jax.errors import ProbexError
from probex_jax.model_files.untrusted_text import is_text, json_object, plain_name, quoted
from probex_jax.zoo.cells import KINDS, number_in
from probex_jax.zoo.flat import stem_of
from probex_jax.zoo.label_files import Labels, read_labels, read_table

# Classes of the held-out splits occur in no other split.
HELD_OUT_SPLITS = ("val_holdout", "test_holdout")
SPLITS = ("train", "val", "test", *HELD_OUT_SPLITS)
SPLITS_FILE, ABOUT_FILE = "splits.json", "zoo.json"
LABEL_FILES = ("labels.csv", "labels.jsonl", "labels.json")

# Split to part, one of `SPLITS`, to models.
Splits = Mapping[str, Mapping[str, tuple[str, ...]]]

_Value = TypeVar("_Value")
# Names of files that are called as all others of their kind: the model is called as its folder.
_NO_NAMES = ("model", "pytorch_lora_weights", "adapter_model")


@dataclass(frozen=True)
class Tables:
    """What tables say of the models of a zoo.

    Args:
      columns: label column to model to its classes; () for none of them. The column "" is what
        `labels.json` says without naming a column, or the models' headers.
      numbers: column of numbers to model to its number. A column without models is one of a store
        that was packed before stores kept numbers.
      splits: split to part to models.
    """

    columns: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    splits: Splits = field(default_factory=dict)

    def column(self, name: str, where: object) -> Mapping[str, tuple[str, ...]]:
        """The classes of the models that have a label in a column.

        Raises:
          ProbexError: if there is no such column, or it holds numbers; `where` is named.
        """
        self.check(name, where)
        if name in self.numbers:
            raise ProbexError(f"{where}: column {quoted(name)} holds numbers; expected classes")
        return self.columns[name]

    def number(self, name: str, where: object) -> Mapping[str, float]:
        """The numbers of the models that have one in a column, also of one of numbers as classes.

        Raises:
          ProbexError: if there is no such column, or what it says of a model is no number; `where`
            is named.
        """
        self.check(name, where)
        if name in self.numbers:
            if not self.numbers[name]:
                old = "a store that was packed before stores kept numbers is to be packed again"
                raise ProbexError(f"{where}: column {quoted(name)} has no number; {old}")
            return self.numbers[name]
        here = f"{where}: column {quoted(name)}"
        return {model: _number(said, model, here) for model, said in self.columns[name].items()}

    def check(self, name: str, where: object) -> None:
        """Raises a ProbexError if there is no such column; `where` is named."""
        if name not in self.columns and name not in self.numbers:
            known = ", ".join(quoted(column) for column in self.attributes)
            raise ProbexError(f"{where}: no column {quoted(name)}; {_listed(known)}")

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of all columns that have one, sorted."""
        return tuple(sorted(filter(None, (*self.columns, *self.numbers))))

    def parts(self, name: str, where: object) -> Mapping[str, str]:
        """Model to part of a split.

        Raises:
          ProbexError: if there is no such split; `where` is named.
        """
        if name not in self.splits:
            known = ", ".join(map(quoted, self.splits))
            raise ProbexError(f"{where}: no split {quoted(name)}; {_listed(known)}")
        return {model: part for part, models in self.splits[name].items() for model in models}

    def joined(self, other: "Tables", models: Iterable[str]) -> "Tables":
        """These tables, but of some models what others say.

        Args:
          other: the newer tables.
          models: those of which nothing is kept but what `other` says.
        """
        replaced = set(models)
        columns, numbers = self._beside(other)
        splits: dict[str, dict[str, tuple[str, ...]]] = {}
        for name in dict.fromkeys([*self.splits, *other.splits]):
            old, new = self.splits.get(name, {}), other.splits.get(name, {})
            parts = {
                part: tuple(model for model in old.get(part, ()) if model not in replaced)
                + new.get(part, ())
                for part in SPLITS
            }
            splits[name] = {part: found for part, found in parts.items() if found}
        return Tables(
            _joined(columns, other.columns, replaced),
            _joined(numbers, other.numbers, replaced),
            {name: parts for name, parts in splits.items() if parts},
        )

    def under(self, other: "Tables") -> "Tables":
        """These tables and others, of which a column or split replaces one of the same name."""
        columns, numbers = self._beside(other)
        return Tables(
            {**columns, **other.columns},
            {**numbers, **other.numbers},
            {**self.splits, **other.splits},
        )

    def _beside(
        self, other: "Tables"
    ) -> tuple[
        Mapping[str, Mapping[str, tuple[str, ...]]],
        Mapping[str, Mapping[str, float]],
    ]:
        """The columns that are not of the other kind in `other`."""
        return (
            {name: column for name, column in self.columns.items() if name not in other.numbers},
            {name: column for name, column in self.numbers.items() if name not in other.columns},
        )


def _joined(
    old: Mapping[str, Mapping[str, _Value]],
    new: Mapping[str, Mapping[str, _Value]],
    replaced: Container[str],
) -> dict[str, Mapping[str, _Value]]:
    """The old columns without some models, and the new ones."""
    joined = {
        name: {m: said for m, said in old.get(name, {}).items() if m not in replaced}
        | dict(new.get(name, {}))
        for name in dict.fromkeys([*old, *new])
    }
    return {name: column for name, column in joined.items() if column}


def _number(classes: Sequence[str], model: str, where: str) -> float:
    number = number_in(classes[0]) if len(classes) == 1 else None
    if number is None:
        said = ", ".join(map(quoted, classes)) or "none of its classes"
        raise ProbexError(f"{where}: model {quoted(model)}: expected a number, found {said}")
    return number


def _listed(known: str) -> str:
    return f"there are {known}" if known else "there is none"


class Names:
    """Finds models by the names that tables have for them.

    Args:
      ids: of the models.

    Example:
      >>> names = Names(["first", "b/second"])
      >>> [names.find(name) for name in ("nets/first.safetensors", "second", "b/second", "third")]
      ['first', 'b/second', 'b/second', None]
    """

    def __init__(self, ids: Iterable[str]):
        self._ids = frozenset(ids)
        counts = Counter(id.rpartition("/")[2] for id in self._ids)
        self._by_last = {last: id for id in self._ids if counts[last := id.rpartition("/")[2]] == 1}

    def find(self, name: str) -> str | None:
        """The id of the model meant, or None."""
        for called in (name, stem := _stem(name)):
            if called in self._ids:
                return called
        return self._by_last.get(stem.rpartition("/")[2])

    def match(
        self, table: Mapping[str, _Value], where: object
    ) -> tuple[dict[str, _Value], tuple[str, ...]]:
        """A table by the ids of the models, and its names that mean none.

        Raises:
          ProbexError: if two names mean one model; `where` and both are named.
        """
        found: dict[str, _Value] = {}
        named: dict[str, str] = {}
        unmatched = []
        for name, value in table.items():
            id = self.find(name)
            if id is None:
                unmatched.append(name)
                continue
            if id in found:
                both = f"{quoted(named[id])} and {quoted(name)}"
                raise ProbexError(f"{where}: {both} are one model")
            found[id], named[id] = value, name
        return found, tuple(unmatched)


def _stem(name: str) -> str:
    """A file's name without what only files have: `a/b/model.safetensors` is `a/b`."""
    name = name.replace("\\", "/").rstrip("/").removeprefix("./")
    folder, _, last = (stem := stem_of(name)).rpartition("/")
    return folder if stem != name and folder and last in _NO_NAMES else stem


def find_labels(
    root: Path, names: Names, files: Sequence[str] = LABEL_FILES
) -> tuple[Labels, dict[str, tuple[str, ...]]]:
    """The labels of the label files in a folder, by the ids of its models.

    Args:
      root: the folder.
      names: of the models.
      files: which of `LABEL_FILES`.

    Returns:
      The labels, and by file the names that mean no model.

    Raises:
      ProbexError: if a file or `zoo.json` is malformed, or two have a column of one name.
    """
    kinds = _kinds(read_about(root).get("kinds", {}), f"{root / ABOUT_FILE}: kinds")
    columns: dict[str, Mapping[str, Any]] = {}
    numbers: dict[str, Mapping[str, float]] = {}
    unmatched = {}
    notes: list[str] = []
    for path in (root / name for name in files):
        if not (path.exists() or path.is_symlink()):
            continue
        labels, unknown = matched(read_labels(path, kinds), names, path)
        for name in (*labels.columns, *labels.numbers):
            if name in columns or name in numbers:
                raise ProbexError(f"{path}: another file has the column {quoted(name)}, too")
        columns |= labels.columns
        numbers |= labels.numbers
        notes += labels.notes
        if unknown:
            unmatched[path.name] = unknown
    return Labels(columns, numbers, tuple(notes)), unmatched


def read_about(root: Path) -> Mapping[str, Any]:
    """What `zoo.json` in a folder says; nothing without one.

    Raises:
      ProbexError: if it is malformed.
    """
    path = root / ABOUT_FILE
    if not (path.exists() or path.is_symlink()):
        return {}
    return json_object(read_table(path, with_mark=True), str(path))


def _kinds(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(kind in KINDS for kind in value.values()):
        told = " or ".join(map(quoted, KINDS))
        raise ProbexError(f"{where}: expected an object, column to {told}, found {quoted(value)}")
    return value


def matched(labels: Labels, names: Names, where: object) -> tuple[Labels, tuple[str, ...]]:
    """Labels by the ids of the models, and the names that mean none.

    Raises:
      ProbexError: if two names mean one model; `where` is named.
    """
    # A row is of one model in all columns.
    tables = (*labels.columns.values(), *labels.numbers.values())
    rows = dict.fromkeys(name for table in tables for name in table)
    ids, unknown = names.match({name: name for name in rows}, where)

    def by_id(columns: Mapping[str, Mapping[str, _Value]]) -> dict[str, Mapping[str, _Value]]:
        return {
            column: {id: table[name] for id, name in ids.items() if name in table}
            for column, table in columns.items()
        }

    return replace(labels, columns=by_id(labels.columns), numbers=by_id(labels.numbers)), unknown


def read_splits(path: Path, names: Names | None = None) -> Splits:
    """Reads a file of splits, {split: {"train": [model, …], "val": […], "test": […]}, …}.

    Args:
      path: the file.
      names: of the models that there are; None not to look them up.

    Returns:
      Split to part to the ids of models; to their names in the file without `names`.

    Raises:
      ProbexError: if the file cannot be read; if a split or part has another name than it may have,
        or a part is empty; or if a model is named that is not there, or in two parts.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "splits.json"
      >>> _ = path.write_text('{"kind-0": {"train": ["a.safetensors"], "val": ["b"]}}')
      >>> read_splits(path, Names(["a", "b"]))
      {'kind-0': {'train': ('a',), 'val': ('b',)}}
    """
    where = str(path)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for split, parts in json_object(read_table(path), where).items():
        plain_name(split, f"{where}: name of a split")
        here = f"{where}: {split}"
        if not isinstance(parts, dict) or not parts:
            raise ProbexError(f"{here}: expected parts such as train, val and test")
        found[split] = {}
        part_of: dict[str, str] = {}
        for part, models in parts.items():
            if part not in SPLITS:
                expected = ", ".join(SPLITS)
                raise ProbexError(f"{here}: no part is called {quoted(part)}; expected {expected}")
            if not isinstance(models, list) or not all(map(is_text, models)):
                raise ProbexError(f"{here}: {part}: expected a list of models")
            if not models:
                raise ProbexError(f"{here}: {part} is empty")
            for number, name in enumerate(models):
                id = name if names is None else names.find(name)
                if id is None:
                    raise ProbexError(f"{here}: {part}: there is no model {quoted(name)}")
                if id in part_of:
                    twice = " twice" if part_of[id] == part else f" and {part_of[id]}"
                    raise ProbexError(f"{here}: {quoted(name)} is in {part}{twice}")
                part_of[id] = part
                models[number] = id
            found[split][part] = tuple(models)
    return found
