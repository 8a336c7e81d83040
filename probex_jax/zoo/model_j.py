"""Model-J's layout on disk: which models a folder holds, in which split, with which labels.

    <tree>/<split>/models--<org>--<name>/refs/main and snapshots/<revision>/model.safetensors

A split may as well hold plain model folders or single `.safetensors` files. The labels of a model
are the classes it was trained on: the header's `dataset_chosen_targets`, or its entry in an
optional `labels.json` ({model: [class, ...]}) beside the splits, which takes precedence. An
optional `zoo.json` names the tree and the classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.model_files import ModelFile, literal_strings

SPLITS = ("train", "val", "test")
LABELS_KEY = "dataset_chosen_targets"


@dataclass(frozen=True)
class ZooModel:
    """One model of a zoo.

    Args:
      id: the name of its folder or file.
      split: "train", "val" or "test".
      path: where `open_model` finds it.
      labels: the classes it was trained on where `labels.json` names them, else None.
    """

    id: str
    split: str
    path: Path
    labels: tuple[str, ...] | None = None

    def labels_in(self, model: ModelFile) -> tuple[str, ...]:
        """The classes that the model was trained on.

        Args:
          model: the same model, open.

        Raises:
          ProbexError: if neither `labels.json` nor the file says, or a class is named twice.
        """
        labels = self.labels
        if labels is None:
            if LABELS_KEY not in model.metadata:
                raise ProbexError(
                    f"{self.path}: no label: expected {LABELS_KEY!r} in the file's metadata or an "
                    "entry in the zoo's labels.json"
                )
            labels = tuple(
                literal_strings(model.metadata[LABELS_KEY], f"{self.path}: {LABELS_KEY}")
            )
        if not labels or len(set(labels)) != len(labels):
            raise ProbexError(f"{self.path}: labels must be one or more distinct classes: {labels}")
        return labels


@dataclass(frozen=True)
class Zoo:
    """The models of one tree.

    Args:
      tree: the tree's name.
      models: sorted by split (train, val, test), then by id.
      classes: the class list of `zoo.json`, or None.
    """

    tree: str
    models: tuple[ZooModel, ...]
    classes: tuple[str, ...] | None


def scan(root: Path) -> Zoo:
    """Lists the models of a zoo folder without opening them.

    Args:
      root: a folder with one or more of `train/`, `val/`, `test/`.

    Raises:
      ProbexError: if there is no such folder, it holds no models, one model is in two splits, or
        `zoo.json` or `labels.json` is malformed.
    """
    root = Path(root)
    if not root.is_dir():
        raise ProbexError(f"{root}: no such folder; expected a zoo with train/, val/ and test/")
    labels = _read_object(root / "labels.json")
    about = _read_object(root / "zoo.json")
    models = [
        ZooModel(path.name, split, path, _labels_of(labels, path.name, root))
        for split in SPLITS
        if (root / split).is_dir()
        for path in sorted((root / split).iterdir())
        if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".safetensors")
    ]
    if not models:
        raise ProbexError(
            f"{root}: no models; expected a folder or .safetensors file each in train/, val/, test/"
        )
    splits: dict[str, str] = {}
    for model in models:
        other = splits.setdefault(model.id, model.split)
        if other != model.split:
            raise ProbexError(f"{root}: {model.id} is in both {other}/ and {model.split}/")
    classes = about.get("classes")
    if classes is not None:
        classes = _distinct_strings(classes, f"{root / 'zoo.json'}: classes")
    tree = about.get("tree", root.resolve().name)
    if not isinstance(tree, str):
        raise ProbexError(f"{root / 'zoo.json'}: tree: expected a text")
    return Zoo(tree, tuple(models), classes)


def _labels_of(labels: dict[str, Any], model: str, root: Path) -> tuple[str, ...] | None:
    if model not in labels:
        return None
    return _distinct_strings(labels[model], f"{root / 'labels.json'}: {model}")


def _distinct_strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProbexError(f"{where}: expected a list of texts")
    if len(set(value)) != len(value):
        raise ProbexError(f"{where}: expected no class twice")
    return tuple(value)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ProbexError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProbexError(f"{path}: expected a JSON object")
    return value
