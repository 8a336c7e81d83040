"""Model-J's layout on disk: the models of a folder, with their splits and labels.

    <tree>/<split>/models--<org>--<name>/refs/main and snapshots/<revision>/model.safetensors

A split may also hold model folders of another layout or single weight files. A model's labels are
the classes that it was trained on: its entry in an optional `labels.json` ({model: [class, ...]})
beside the splits, or else its header's `dataset_chosen_targets`, a list, or for a LoRA its one
`imagenet_class_id` or `concept`. An optional `zoo.json` names the tree and the classes, with words
for classes whose names are ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files import ModelFile, Remote, literal_strings, open_model
from probex_jax.model_files.hub import shown_path
from probex_jax.model_files.locate import read_inside
from probex_jax.model_files.untrusted_text import is_text, json_object, quoted, shown

# Classes of the held-out splits occur in no other split.
HELD_OUT_SPLITS = ("val_holdout", "test_holdout")
SPLITS = ("train", "val", "test", *HELD_OUT_SPLITS)
LABELS_KEY = "dataset_chosen_targets"
LABEL_KEYS = ("imagenet_class_id", "concept")

_MAX_TABLE_BYTES = 256 * 2**20
# Files that may be meant as a model: listed, so that none is ignored silently.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".onnx"}


@dataclass(frozen=True)
class ZooModel:
    """One model of a zoo.

    Args:
      id: the name of its folder, or of its file without `.safetensors`; escaped if not text.
      split: "train", "val", "test", "val_holdout" or "test_holdout".
      path: where `open_model` finds it.
      stated: its entry in `labels.json`, unchecked; None without one.
      remote: how it is read if it is on a server.
      fault: why the path holds no model; "" if it may hold one.
    """

    id: str
    split: str
    path: Path
    stated: Any = None
    remote: Remote | None = None
    fault: str = ""

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

    def stated_labels(self) -> tuple[str, ...]:
        """The labels in `labels.json`; none without an entry.

        Raises:
          ProbexError: if the entry is no list of distinct texts.
        """
        if self.stated is None:
            return ()
        return _distinct_texts(self.stated, f"{self.where}: labels in labels.json")


def stated_in_metadata(model: ModelFile) -> tuple[tuple[str, ...], str]:
    """The classes that a file's metadata states it was trained on, and the metadata's key.

    Returns:
      The classes and the key; () and "" without such a key.

    Raises:
      ProbexError: if the value is no list of distinct texts.
    """
    if LABELS_KEY in model.metadata:
        where = f"{model.path}: {LABELS_KEY}"
        return _distinct_texts(
            literal_strings(model.metadata[LABELS_KEY], where), where
        ), LABELS_KEY
    for key in LABEL_KEYS:
        if key in model.metadata:
            return _distinct_texts([model.metadata[key].strip()], f"{model.path}: {key}"), key
    return (), ""


@dataclass(frozen=True)
class Zoo:
    """The models of one tree.

    Args:
      tree: the tree's name.
      models: sorted by split, then by id.
      classes: the class list of `zoo.json`, or None.
      texts: from `zoo.json`: class to the words for it, for classes whose name is a WordNet id.
      unmatched: names in `labels.json` without a model in the zoo.
    """

    tree: str
    models: tuple[ZooModel, ...]
    classes: tuple[str, ...] | None
    texts: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()


def scan(root: str | Path) -> Zoo:
    """Lists the models of a zoo folder without opening them.

    Args:
      root: a folder with one or more of `train/`, `val/`, `test/`, `val_holdout/`,
        `test_holdout/`.

    Returns:
      The zoo, with labels not yet read.

    Raises:
      ProbexError: if there is no such folder, it holds no models, a model occurs twice, or
        `zoo.json` or `labels.json` is malformed.

    Example:
      >>> import pathlib, tempfile
      >>> root = pathlib.Path(tempfile.mkdtemp())
      >>> (root / "train" / "my-model").mkdir(parents=True)
      >>> [(model.id, model.split) for model in scan(root).models]
      [('my-model', 'train')]
    """
    root = Path(root)
    if not root.is_dir():
        raise ProbexError(f"{root}: no such folder; expected a zoo with train/, val/ and test/")
    labels = _table(root / "labels.json")
    about = _table(root / "zoo.json")
    models: dict[str, ZooModel] = {}
    for split in SPLITS:
        for path in sorted((root / split).iterdir()) if (root / split).is_dir() else ():
            if not _is_model(path):
                continue
            name = path.name.removesuffix(".safetensors")
            if name in models:
                raise ProbexError(f"{root}: {name} is in both {models[name].split}/ and {split}/")
            id, fault = checked_id(name, path)
            models[name] = ZooModel(id, split, path, labels.get(name), fault=fault)
    if not models:
        raise ProbexError(f"{root}: no models; {_instead(root)}")
    classes, tree = about.get("classes"), about.get("tree", root.resolve().name)
    if classes is not None:
        classes = _distinct_texts(classes, f"{shown(root / 'zoo.json')}: classes")
    if not (tree and is_text(tree)):
        raise ProbexError(
            f"{shown(root / 'zoo.json')}: tree: expected a text, found {quoted(tree)}"
        )
    unmatched = tuple(name for name in labels if name not in models)
    texts = _texts(about.get("texts", {}), f"{shown(root / 'zoo.json')}: texts")
    return Zoo(tree, tuple(models.values()), classes, texts, unmatched)


def checked_id(id: str, path: Path) -> tuple[str, str]:
    """A model's id, escaped if it is not text, and its fault or ""."""
    if is_text(id):
        return id, ""
    fault = f"{shown(path)}: its name is invalid Unicode or has control characters; rename it"
    return repr(id)[1:-1], fault


def _instead(root: Path) -> str:
    """What to give instead of a folder that is no zoo."""
    if zoos := sorted(path.name for path in root.iterdir() if (path / "train").is_dir()):
        return f"give one of the zoos in it, such as {quoted(zoos[0])}"
    return "expected a folder or .safetensors file each in train/, val/, test/"


def _texts(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ProbexError(f"{where}: expected an object, class to words, found {quoted(value)}")
    for name, words in value.items():
        if not is_text(name):
            raise ProbexError(f"{where}: {quoted(name)} is no name of a class")
        if not is_text(words) or not words.strip():
            raise ProbexError(f"{where}: {quoted(name)}: expected words, found {quoted(words)}")
    return value


def _is_model(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.is_dir() or path.suffix.lower() in _WEIGHTS


def _distinct_texts(value: Any, where: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [None]
    if not texts or not all(isinstance(item, str) and item for item in texts):
        raise ProbexError(f"{where}: expected a list of class names, found {quoted(value)}")
    if odd := [text for text in texts if not is_text(text)]:
        raise ProbexError(f"{where}: {quoted(odd[0])} is no name of a class")
    if len(set(texts)) != len(texts):
        raise ProbexError(f"{where}: a class stands there twice: {quoted(value)}")
    return tuple(texts)


def _table(path: Path) -> Mapping[str, Any]:
    if not (path.exists() or path.is_symlink()):
        return {}
    try:
        return json_object(read_inside(path, _MAX_TABLE_BYTES, "zoo"), str(path))
    except OSError as error:
        raise ProbexError(f"{path}: cannot be read: {error.strerror}") from error
