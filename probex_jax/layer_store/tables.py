"""The label columns and splits of a store, in its `tables.json`; what is checked of labels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.files import read_json, write_json
from probex_jax.integrity import sealed, unsealed
from probex_jax.layer_store.headers import ModelHeader
from probex_jax.layer_store.stored_model import StoredModel
from probex_jax.model_files.untrusted_text import quoted
from probex_jax.zoo import Zoo
from probex_jax.zoo.model_j import HELD_OUT_SPLITS
from probex_jax.zoo.tables import Tables

_NAME = "tables.json"
# Of many classes with too few models, so many are named.
_NAMED = 5


def read_tables(store: Path) -> Tables:
    """The tables of a store; empty ones if it has none.

    Raises:
      ProbexError: if they are damaged.
    """
    path = store / _NAME
    try:
        about = unsealed(read_json(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return Tables()
    try:
        return Tables(
            {
                str(name): {model: _texts(classes) for model, classes in column.items()}
                for name, column in about["columns"].items()
            },
            _numbers(about["numbers"]),
            {
                str(name): {part: _texts(models) for part, models in parts.items()}
                for name, parts in about["splits"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbexError(f"{path}: damaged ({error}); pack again") from error


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{value!r:.50} is not a list of strings")
    return tuple(value)


def _numbers(value: Any) -> dict[str, dict[str, float]]:
    if isinstance(value, list):  # of before stores kept more of them than names
        return {name: {} for name in _texts(value)}
    numbers = {
        str(name): {model: float(number) for model, number in column.items()}
        for name, column in value.items()
    }
    if not all(isfinite(number) for column in numbers.values() for number in column.values()):
        raise ValueError("a number is not finite")
    return numbers


def take_over(store: Path, zoo: Zoo, headers: Sequence[ModelHeader]) -> None:
    """Brings the tables of a store to what a zoo says of its models.

    Args:
      store: its folder.
      zoo: of models in the store, and of those that are to be packed.
      headers: of these.

    Raises:
      ProbexError: if `labels.json` states no classes for a model, or the tables are damaged.
    """
    before = read_tables(store)
    columns = dict(zoo.tables.columns)
    if zoo.is_flat:
        # Without split folders what headers say is one more column.
        own = {
            **before.columns.get("", {}),
            **{model.id: model.stated_labels() for model in zoo.models if model.stated is not None},
            **{header.model.id: header.labels for header in headers if header.labels is not None},
        }
        columns |= {"": own} if own else {}
    new = Tables(columns, zoo.tables.numbers, zoo.tables.splits)
    tables = before.joined(new, (model.id for model in zoo.models))
    if tables != before:
        about = {"columns": tables.columns, "numbers": tables.numbers, "splits": tables.splits}
        write_json(store / _NAME, sealed(about))


def check_held_out(where: Path, models: Iterable[tuple[str, str, Sequence[str]]]) -> None:
    """Checks that no class of a held-out split occurs in another split.

    Args:
      where: what the message names.
      models: id, split and labels of each.

    Raises:
      ProbexError: if one does; the message names the class and two of the models.
    """
    held_out: dict[str, str] = {}
    others: dict[str, str] = {}
    for model, split, labels in models:
        known = held_out if split in HELD_OUT_SPLITS else others
        for label in labels:
            known.setdefault(label, f"{model} ({split})")
    both = sorted(held_out.keys() & others.keys())
    if both:
        raise ProbexError(
            f"{where}: class {both[0]!r} of {held_out[both[0]]} also occurs in {others[both[0]]}; "
            "a held-out class may occur in no other split"
        )


def viewed(
    packed: Iterable[StoredModel],
    said: Mapping[str, tuple[str, ...] | float],
    parts: Mapping[str, str],
    splits: Sequence[str],
    where: str,
) -> tuple[StoredModel, ...]:
    """The models that have a label or number and a part, with these.

    Args:
      packed: all models.
      said: model to classes, or to its number.
      parts: model to part of a split; "" for models that are in none.
      splits: those that there are, for an error.
      where: what errors name.

    Raises:
      ProbexError: if no model is in a part, or none of a part has a label that is not for
        validation.
    """
    if not any(parts.values()):
        there = f"give one of its splits: {', '.join(splits)}"
        none = "experiments.split makes splits, and pack takes them"
        raise ProbexError(
            f"{where}: its models are in no split folders; {there if splits else none}"
        )
    divided = [model for model in packed if parts.get(model.id)]
    models = tuple(
        model.told(said[model.id], parts[model.id]) for model in divided if model.id in said
    )
    # Without models of its own to choose by, what is trained in closed form does without.
    needed = {parts[model.id] for model in divided} - {"val", "val_holdout"}
    if empty := sorted(needed - {model.split for model in models}):
        raise ProbexError(f"{where}: no model of {empty[0]} has a label")
    return models


def is_exclusive(where: object, models: Iterable[StoredModel]) -> bool:
    """Whether every model of a split has exactly one class.

    Raises:
      ProbexError: if all have one but those that have none of the classes; one of them is named.
    """
    models = [model for model in models if model.split]
    counts = {len(model.labels) for model in models}
    if counts == {0, 1}:
        none = next(model.id for model in models if not model.labels)
        raise ProbexError(
            f"{where}: {quoted(none)} has none of the classes, the others have exactly one; leave "
            "its label blank, or name a class for such models"
        )
    return counts == {1}


def one_each(where: object, models: Iterable[StoredModel], classes: Sequence[str]) -> list[int]:
    """The place of each model's one class among candidates.

    Raises:
      ProbexError: if a model has several classes, or one that is not among the candidates.
    """
    place = {name: index for index, name in enumerate(classes)}
    found = []
    for model in models:
        if len(model.labels) != 1:
            raise ProbexError(f"{where}: {model.id} has {len(model.labels)} classes, expected one")
        if model.labels[0] not in place:
            raise ProbexError(
                f"{where}: {model.id} of split {model.split} has class {model.labels[0]!r}, "
                f"which is not among the {len(classes)} candidates"
            )
        found.append(place[model.labels[0]])
    return found


def check_labels(where: object, models: Iterable[StoredModel]) -> tuple[str, ...]:
    """Checks that training models differ in their labels.

    Args:
      where: what the error names.
      models: in splits.

    Returns:
      A line for each class that is hard to learn: one that has a single model, or none in training.

    Raises:
      ProbexError: if all training models have the same labels.
    """
    seen = [model for model in models if model.split and model.split not in HELD_OUT_SPLITS]
    training = [model for model in seen if model.split == "train"]
    if len({frozenset(model.labels) for model in training}) == 1:
        same = ", ".join(map(quoted, training[0].labels)) or "none of the classes"
        raise ProbexError(
            f"{where}: all {len(training)} training models have the same label, {same}; expected "
            "two or more"
        )
    counts = Counter(label for model in seen for label in model.labels)
    trained = Counter(label for model in training for label in model.labels)
    lines = []
    for name in sorted(counts):
        if trained[name] == 0:
            lines.append(f"class {quoted(name)} is in no training model: it will not be recognised")
        elif counts[name] == 1:
            lines.append(f"class {quoted(name)} has one model only, in training: it is not tested")
    more = [f"and {len(lines) - _NAMED} more such classes"] if len(lines) > _NAMED else []
    return (*lines[:_NAMED], *more)
