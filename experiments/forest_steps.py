"""The steps of growing a forest and describing models, with their progress bars and table rows."""

import dataclasses
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import tee
from operator import length_hint
from pathlib import Path
from typing import Any

import probex_jax as px
from experiments import cli
from probex_jax.engine import HERE, Engine
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, is_full, write_json, write_text
from probex_jax.forest import (
    Answer,
    Comparison,
    Description,
    Forest,
    Nearest,
    Prediction,
    RelativesIn,
    Tree,
    grow,
)
from probex_jax.reports import attributes, model_card
from probex_jax.search import FoundModel, Index
from probex_jax.search.nearest import NearestIn

Row = dict[str, object]

# A model, and its description or why there is none.
Described = tuple[FoundModel, Description | ProbexError]

_SHOWN_CLASSES = 4
_LONGEST_NAME = 200  # bytes


def grow_forest(
    forest: Path,
    stores: Sequence[px.LayerStore],
    experts: Sequence[px.Expert],
    roots: Mapping[str, str],
    label_sets: Sequence[str] = (),
    view: Callable[[px.LayerStore, int], px.LayerStore] = lambda store, number: store,
    tags: Sequence[str] = (),
) -> list[Row]:
    """Grows a forest by the trees of some stores; a row of each expert.

    Args:
      forest: its folder.
      stores: of the trees; of one with several experts one store, or one for each expert in order.
      experts: of the trees.
      roots: of some of the trees.
      label_sets: what the classes of each expert are about; none for what cards and stores say.
      view: a store with the labels and split that the expert of a number was trained on.
      tags: that experts that rank tags rank as well.
    """
    if tags and not any(map(_ranks_tags, experts)):
        raise ProbexError("--tags: none of --experts ranks tags; train one with config.text.tags")
    if label_sets and len(label_sets) != len(experts):
        raise ProbexError(f"--label_sets: {len(label_sets)} for {len(experts)} experts")
    said: Sequence[str | None] = label_sets or [None] * len(experts)
    grown: list[tuple[px.LayerStore, px.Expert | None, str | None]] = []
    for name in dict.fromkeys(store.tree for store in stores):
        of_tree = [store for store in stores if store.tree == name]
        numbers = [n for n, expert in enumerate(experts) if expert.card.tree == name]
        if len(of_tree) not in (1, len(numbers)):
            raise ProbexError(
                f"tree {name}: {len(of_tree)} stores and {len(numbers)} experts; give one store, "
                "or one for each expert"
            )
        if not numbers:
            grown.append((of_tree[0], None, None))
        for place, number in enumerate(numbers):
            store = view(of_tree[place % len(of_tree)], number)
            grown.append((store, experts[number], said[number]))
        cards = [experts[number].card for number in numbers]
        told = {
            said[n] or c.more.get("label_set") or c.classes
            for n, c in zip(numbers, cards, strict=True)
        }
        if len(told) < len(numbers):
            raise ProbexError(
                f"tree {name}: two experts are of one label set; give one, or --label_sets"
            )
    trees = {store.tree for store in stores}
    for name in sorted(({expert.card.tree for expert in experts} | set(roots)) - trees):
        raise ProbexError(f"tree {name}: no store of it is given; a tree needs its store")
    rows = []
    with cli.progress(len(grown), "growing", "expert") as bar:
        for store, one, label_set in grown:
            root, more = roots.get(store.tree, ""), tags if _ranks_tags(one) else ()
            tree, done = grow(forest, store, one, root, label_set, more)
            if len(tree.router.radii) > 1:
                bar.write(
                    f"{store.path}: its models are of {len(tree.router.radii)} trees by their "
                    "weights; an expert is best on one",
                    file=sys.stderr,
                )
            rows.append(_tree_row(tree, one, done))
            bar.update()
    return rows


def _ranks_tags(expert: px.Expert | None) -> bool:
    return bool(expert and expert.card.text and expert.card.text.tags)


def read_tags(path: Path) -> list[str]:
    """The tags of a file, one a line.

    Raises:
      ProbexError: if it cannot be read, or holds none.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProbexError(f"{path}: no file of tags, one a line ({error})") from None
    tags = list(dict.fromkeys(tag for line in lines if (tag := " ".join(line.split()))))
    if not tags:
        raise ProbexError(f"{path}: holds no tags; expected one a line")
    return tags


def _tree_row(tree: Tree, given: px.Expert | None, done: str) -> Row:
    router, stated = tree.router, tree.router.stated_root
    classes = () if given is None else given.card.classes
    # The label set that it has there; growing may have calibrated the expert itself.
    label_set = next((n for n, e in tree.entries.items() if e.classes == classes), "")
    expert = None if given is None else tree.experts[label_set]
    row: Row = {
        "tree": router.tree,
        "label set": label_set,
        "root": router.root or (f"{stated} (stated)" if stated else "not known"),
        "models": router.n_models,
        "radius": f"{max(router.radii):.3g}",
        "expert reads": "no expert" if expert is None else expert.reading,
    }
    calibration = expert and expert.card.calibration
    for when in ("before", "after"):
        errors = (calibration and getattr(calibration, when)) or {}
        found = errors.get("test", errors.get("val"))
        row[f"calibration error {when}"] = "" if found is None else f"{found:.3f}"
    return {**row, "this run": done}


def nearest_in(indexes: Sequence[Index]) -> Nearest | None:
    """What finds the nearest documented models of a model, in the index of its tree."""
    return NearestIn(indexes) if indexes else None


def describe(
    forest: Forest,
    models: Iterable[FoundModel],
    nearest: Nearest | None = None,
    out: Path | None = None,
    engine: Engine = HERE,
    readers: int = 4,
    relatives: RelativesIn | None = None,
) -> Iterator[Described]:
    """Describes models, and writes their cards to a folder if one is given.

    What cannot be described or written is reported on standard error, a line each.
    """
    given, asked = tee(models)
    whole = (model for model in asked if not model.fault)
    first, second = tee(whole)
    paths, ids = (model.path for model in first), (model.id for model in second)
    with cli.progress(length_hint(models), "describing", "model") as bar:
        found = forest.describe_all(paths, ids, nearest=nearest, engine=engine, readers=readers)
        for model in given:
            description = ProbexError(model.fault) if model.fault else next(found)
            if isinstance(description, Description):
                if relatives is not None:
                    found_relatives = relatives(model.path)
                    description = dataclasses.replace(description, relatives=found_relatives)
                description = _written(description, model, out)
            if isinstance(description, ProbexError):
                bar.write(cli.one_line(f"failed {model.id}: {description}"), file=sys.stderr)
            bar.update()
            yield model, description


def _with_labels(description: Description, model: FoundModel) -> Description:
    """What a zoo's tables say of a model counts as stated, before what the file says."""
    labels, said = model.stated_labels(), description.stated
    if labels:
        said = dataclasses.replace(said, labels=labels, source="labels.json")
    if model.attributes:
        said = dataclasses.replace(said, attributes=model.attributes)
    return dataclasses.replace(description, stated=said)


def _written(
    description: Description, model: FoundModel, out: Path | None
) -> Description | ProbexError:
    try:
        description = _with_labels(description, model)
        if out is not None:
            write_card(description, out)
    except ProbexError as error:
        if is_full(error):
            raise  # it will take no other card
        return error
    return description


def write_card(description: Description, folder: Path) -> None:
    """Writes a description as Markdown and JSON, in the folder under its id."""
    parts = [_short(part) for part in description.id.split("/") if part.strip(".")] or ["model"]
    path = folder.joinpath(*parts)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_name(path.name + ".md"), model_card(description))
    write_json(path.with_name(path.name + ".json"), description.as_json())


def _short(name: str) -> str:
    """A name that a file system takes with a suffix to it."""
    data = os.fsencode(name)
    if len(data) <= _LONGEST_NAME:
        return name
    return f"{data[:_LONGEST_NAME].decode('utf-8', 'ignore')}-{zlib.crc32(data):08x}"


def as_json(model: FoundModel, description: Description | ProbexError) -> dict[str, Any]:
    """A description, or why there is none, as JSON values."""
    if isinstance(description, ProbexError):
        return {"id": model.id, "path": str(model.path), "error": str(description)}
    return description.as_json()


def described_row(model: FoundModel, description: Description | ProbexError) -> Row:
    """A model that was described, or was not."""
    if isinstance(description, ProbexError):
        return {"model": model.id, "tree": "failed", "trained on (probability)": str(description)}
    if not description.tree:
        said = description.route.reason
    elif not description.answers:
        said = "no expert of this tree"
    else:
        said = "; ".join(map(_said, description.answers))
    tree = description.tree or "unknown"
    return {"model": model.id, "tree": tree, "trained on (probability)": said}


def _said(answer: Answer) -> str:
    """What is predicted of an attribute, of a number with its interval."""
    if answer.quantity is not None:
        return f"{answer.title} {attributes.predicted(answer)} ({attributes.held(answer)})"
    said = listed(answer.predicted) or "no class likelier than not"
    return f"{answer.label_set} {said}" if answer.label_set else said


def compared(described: Iterable[Described]) -> list[Described]:
    """Those of which something is stated that can be compared, the most surprising first."""
    found = [
        (comparison.surprise, one)
        for one in described
        if isinstance(one[1], Description) and (comparison := one[1].comparison)
        if comparison.n_known
    ]
    return [one for _, one in sorted(found, key=lambda each: -each[0])]


def compared_rows(described: Sequence[Described]) -> list[Row]:
    """Predicted against stated, the most surprising first; those with nothing to compare not."""
    pairs = [
        (description.comparison, description)
        for _, description in compared(described)
        if isinstance(description, Description) and description.comparison
    ]
    return [
        {
            "model": description.id,
            "tree": description.tree,
            "agree": _agreement(comparison),
            "surprise": f"{comparison.surprise:.2f}",
            "stated, not predicted": listed(comparison.missed),
            "predicted, not stated": listed(comparison.extra),
        }
        for comparison, description in pairs
    ]


def _agreement(comparison: Comparison) -> str:
    if comparison.chosen == "one":
        return "no" if comparison.missed else "yes"
    return f"{comparison.n_right} of {comparison.n_classes}"


def listed(predictions: Sequence[Prediction]) -> str:
    """The first classes with their probabilities, and how many more there are."""
    shown = [f"{p.text} {p.probability:.2f}" for p in predictions[:_SHOWN_CLASSES]]
    more = len(predictions) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
