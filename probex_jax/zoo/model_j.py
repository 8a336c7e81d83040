"""The models of a folder, with their splits and labels: Model-J's layout, or a flat folder.

    <tree>/<split>/models--<org>--<name>/refs/main and snapshots/<revision>/model.safetensors

A split may also hold model folders of another layout or single weight files. Without splits the
models lie in <tree>/models/ or <tree>/ itself (`flat`), and `splits.json` may divide them.

A model's labels are the classes that it was trained on: its entry in an optional `labels.json`
({model: [class, ...]}) beside the splits, or else its header's `dataset_chosen_targets`, a list, or
for a LoRA its one `imagenet_class_id` or `concept`. Files of labels with named columns say more
(`label_files`). An optional `zoo.json` names the tree and the classes, with words for classes whose
names are ids, and says which columns hold numbers.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from probex_jax.buckets import shown_path
from probex_jax.errors import ProbexError, one_line
from probex_jax.model_files import ModelFile, Remote, literal_strings, open_model
from probex_jax.model_files.stated import LABEL_KEYS, LABELS_KEY
from probex_jax.model_files.untrusted_text import is_text, quoted
from probex_jax.zoo.flat import by_name, flat_models, is_weights
from probex_jax.zoo.label_files import Labels, classes_of, distinct_texts
from probex_jax.zoo.listed_path import zoo_path
from probex_jax.zoo.stated_labels import (
    RULES,
    TAGS,
    TEXT,
    TagRules,
    columns_of,
    label_sources,
    numbers_of,
    read_said,
)
from probex_jax.zoo.tables import (
    HELD_OUT_SPLITS,
    LABEL_FILES,
    SPLITS,
    SPLITS_FILE,
    Names,
    Tables,
    find_labels,
    read_about,
    read_splits,
)

__all__ = ["HELD_OUT_SPLITS", "SPLITS", "Zoo", "ZooModel", "scan", "stated_in_metadata"]


@dataclass(frozen=True)
class ZooModel:
    """One model of a zoo.

    Args:
      id: the name of its folder, or of its file without `.safetensors`; escaped if not text.
      split: "train", "val", "test", "val_holdout" or "test_holdout"; "" in a flat folder.
      path: where `open_model` finds it.
      stated: its entry in `labels.json`, unchecked; None without one.
      remote: how it is read if it is on a server.
      fault: why the path holds no model; "" if it may hold one.
      needs_label: whether it is a fault if nothing says what the model was trained on.
    """

    id: str
    split: str
    path: Path
    stated: Any = None
    remote: Remote | None = None
    fault: str = ""
    needs_label: bool = True

    @property
    def where(self) -> str:
        """The path, or the address on a server."""
        return shown_path(self.path)

    def open(self) -> ModelFile:
        """Opens the model.

        Raises:
          ProbexError: as `open_model`, or if the model has a `fault`.
        """
        if self.fault:
            raise ProbexError(self.fault)
        return open_model(self.path, remote=self.remote)

    def labels_in(self, model: ModelFile) -> tuple[str, ...]:
        """The classes that the model was trained on.

        Args:
          model: the same model, open.

        Raises:
          ProbexError: if neither `labels.json` nor the file states them, or not as a list of
            distinct texts.
        """
        if self.stated is not None:
            return self.stated_labels()
        labels, key = stated_in_metadata(model)
        if not key:
            raise ProbexError(
                f"{self.where}: no label: expected {LABELS_KEY!r}, {LABEL_KEYS[0]!r} or "
                f"{LABEL_KEYS[1]!r} in the file's metadata or an entry in the zoo's labels.json"
            )
        return labels

    def labels_if_known(self, model: ModelFile) -> tuple[str, ...] | None:
        """As `labels_in`; None if nothing states them and the model needs none."""
        if self.stated is None and not self.needs_label and not stated_in_metadata(model)[1]:
            return None
        return self.labels_in(model)

    def stated_labels(self) -> tuple[str, ...]:
        """The labels in `labels.json`; none without an entry.

        Raises:
          ProbexError: if the entry is no class, nor a list of distinct ones.
        """
        if self.stated is None:
            return ()
        return classes_of(self.stated, f"{self.where}: labels in labels.json")


def stated_in_metadata(model: ModelFile) -> tuple[tuple[str, ...], str]:
    """The classes that a file's metadata states it was trained on, and the metadata's key.

    Returns:
      The classes and the key; () and "" without such a key.

    Raises:
      ProbexError: if the value is no list of distinct texts.
    """
    if LABELS_KEY in model.metadata:
        where = f"{model.path}: {LABELS_KEY}"
        stated = literal_strings(model.metadata[LABELS_KEY], where)
        return distinct_texts(stated, where, stated), LABELS_KEY
    for key in LABEL_KEYS:
        if key in model.metadata:
            label = model.metadata[key].strip()
            return distinct_texts([label], f"{model.path}: {key}", label), key
    return (), ""


@dataclass(frozen=True)
class Zoo:
    """The models of one tree.

    Args:
      tree: the tree's name.
      models: sorted by split, then by id.
      classes: the class list of `zoo.json`, or None.
      texts: from `zoo.json`: class to the words for it, for classes whose name is a WordNet id.
      unmatched: file of labels to its names without a model in the zoo.
      tables: label columns and splits, by the ids of the models.
      notes: lines about what was guessed of files of labels, such as encodings.
    """

    tree: str
    models: tuple[ZooModel, ...]
    classes: tuple[str, ...] | None
    texts: Mapping[str, str] = field(default_factory=dict)
    unmatched: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tables: Tables = field(default_factory=Tables)
    notes: tuple[str, ...] = ()

    @property
    def is_flat(self) -> bool:
        """Whether no folder says which split a model is in."""
        return not any(model.split for model in self.models)


def scan(
    root: str | Path,
    labels: str | Sequence[str] = LABEL_FILES,
    *,
    rules: TagRules = RULES,
    on_model: Callable[[str], None] = lambda reason: None,
) -> Zoo:
    """Lists the models of a zoo folder; without opening them, if labels are in files beside them.

    Args:
      root: a folder with one or more of `train/`, `val/`, `test/`, `val_holdout/`,
        `test_holdout/`, or a flat one, with the models in it or in `models/`; or the address of
        such a folder in a bucket, `s3://…` or `gs://…`.
      labels: where label columns come from: names of files of labels, "headers", "sidecars",
        "front_matter" and "folders"; of a model that two of them label in one column, the first
        counts. A list, or one text with commas.
      rules: which tags that models state become classes.
      on_model: called after each model that is opened for them with the reason why it could not
        be read, or "".

    Returns:
      The zoo, with the classes in files' headers (`ZooModel.labels_in`) not yet read.

    Raises:
      ProbexError: if there is no such folder or source of labels, it holds no models, a model
        occurs twice, or `zoo.json`, a file of labels or `splits.json` is malformed; or if
        `splits.json` names a model that is not there, or a model in two parts.

    Example:
      >>> import pathlib, tempfile
      >>> root = pathlib.Path(tempfile.mkdtemp())
      >>> (root / "train" / "my-model").mkdir(parents=True)
      >>> [(model.id, model.split) for model in scan(root).models]
      [('my-model', 'train')]
    """
    root = zoo_path(root)
    if not root.is_dir():
        raise ProbexError(f"{root}: no such folder; expected a zoo with train/, val/ and test/")
    about = read_about(root)
    found: dict[str, tuple[str, Path]] = {}
    for name, split, path in _listed(root, about):
        if name in found:
            both = f"{found[name][0]}/ and {split}/" if split else "a file and a folder"
            raise ProbexError(f"{root}: {name} is in both {both}")
        found[name] = (split, path)
    if not found:
        raise ProbexError(f"{root}: no models; {_instead(root)}")
    names, sources = Names(found), label_sources(labels)
    files, unmatched = find_labels(root, names, [s for s in sources if s in LABEL_FILES])
    splits = root / SPLITS_FILE
    named = replace(files, columns={name: c for name, c in files.columns.items() if name})
    if sources != LABEL_FILES:
        named = _with_stated(named, found, sources, rules, on_model)
    tables = Tables(
        named.columns,
        named.numbers,
        read_splits(splits, names) if splits.exists() or splits.is_symlink() else {},
    )
    stated = files.columns.get("", {})
    needs_label = not (tables.columns or tables.numbers) and any(s for s, _ in found.values())
    models = []
    for name, (split, path) in found.items():
        id, fault = checked_id(name, path)
        models.append(ZooModel(id, split, path, stated.get(name), None, fault, needs_label))
    classes, tree = about.get("classes"), about.get("tree", root.resolve().name)
    if classes is not None:
        where = f"{root / 'zoo.json'}: classes"
        if not (isinstance(classes, list) and classes):
            raise ProbexError(f"{where}: expected a list of class names, found {quoted(classes)}")
        classes = distinct_texts(classes, where, classes)
    if not (tree and is_text(tree)):
        raise ProbexError(f"{root / 'zoo.json'}: tree: expected a text, found {quoted(tree)}")
    texts = _texts(about.get("texts", {}), f"{root / 'zoo.json'}: texts")
    return Zoo(tree, tuple(models), classes, texts, unmatched, tables, files.notes)


def _with_stated(
    files: Labels,
    models: Mapping[str, tuple[str, Path]],
    sources: Sequence[str],
    rules: TagRules,
    on_model: Callable[[str], None],
) -> Labels:
    """Columns of files and of what models state; of each model that of the first source."""
    said = read_said(((name, path) for name, (_, path) in models.items()), sources, on_model)
    order = {source: number for number, source in enumerate(sources)}
    last = min((order[source] for source in LABEL_FILES if source in order), default=len(order))

    def first(name: str, column: Mapping[str, Any]) -> dict[str, Any]:
        """What is stated in a column, as far as its source comes before the files of labels."""
        by = TAGS if name == TEXT else name
        return {
            id: value
            for id, value in column.items()
            if order.get(said[id].sources.get(by, ""), last) < last
        }

    def merged(
        of_files: Mapping[str, Mapping[str, Any]],
        stated: Mapping[str, Mapping[str, Any]],
        others: Container[str],
    ) -> dict[str, Mapping[str, Any]]:
        """Both, but for stated columns that are among the others, which files have of that kind."""
        both = dict.fromkeys([*of_files, *(name for name in stated if name not in others)])
        return {
            name: {**column, **of_files.get(name, {}), **first(name, column)}
            for name, column in ((name, stated.get(name, {})) for name in both)
        }

    return Labels(
        merged(files.columns, columns_of(said, rules), files.numbers),
        merged(files.numbers, numbers_of(said, rules), files.columns),
    )


def _listed(root: Path, about: Mapping[str, Any]) -> Iterator[tuple[str, str, Path]]:
    """Name, split and path of every model."""
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if not splits:
        if not _zoos_in(root):
            flat = flat_models(root, about.get("models"), f"{root / 'zoo.json'}: models")
            yield from ((name, "", path) for name, path in flat)
        return
    if "models" in about:
        raise ProbexError(f"{root / 'zoo.json'}: models: they are in {splits[0]}/, too")
    for split in splits:
        paths = (
            path
            for path in (root / split).iterdir()
            if not path.name.startswith(".") and (path.is_dir() or is_weights(path))
        )
        yield from ((name, split, path) for name, path in by_name(paths))


def checked_id(id: str, path: Path) -> tuple[str, str]:
    """A model's id, escaped if it is not text, and its fault or ""."""
    if is_text(id):
        return id, ""
    fault = f"{one_line(path)}: its name is invalid Unicode or has control characters; rename it"
    return repr(id)[1:-1], fault


def _instead(root: Path) -> str:
    """What to give instead of a folder that is no zoo."""
    if zoos := _zoos_in(root):
        return f"give one of the zoos in it, such as {quoted(zoos[0])}"
    return "expected a folder or .safetensors file each, in train/, val/, test/ or without splits"


def _zoos_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if (path / "train").is_dir())


def _texts(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ProbexError(f"{where}: expected an object, class to words, found {quoted(value)}")
    for name, words in value.items():
        if not is_text(name):
            raise ProbexError(f"{where}: {quoted(name)} is not a valid class name")
        if not is_text(words) or not words.strip():
            raise ProbexError(f"{where}: {quoted(name)}: expected words, found {quoted(words)}")
    return value
