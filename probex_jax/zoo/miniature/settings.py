"""What a miniature zoo is made with, and what each of its models is to become."""

import dataclasses
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature.data import CLASSES
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.vit import ViT

SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}

_MOST = 2**31 - 1  # what an int32 holds


@dataclasses.dataclass(frozen=True)
class Tree:
    """A Model Tree: an architecture, and the pre-training that its root had.

    Attributes:
      architecture: the model's functions of parameters and images.
      pretraining: "supervised", or "masked": reconstruction of hidden patches, no labels.
    """

    architecture: ViT | ResNet
    pretraining: str


TREES = {
    "MiniSupViT": Tree(ViT(), "supervised"),
    "MiniMAE": Tree(ViT(), "masked"),
    "MiniResNet": Tree(ResNet(), "supervised"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a miniature zoo holds.

    Attributes:
      trees: which of `TREES` to build.
      models: fine-tuned models per tree.
      seed: decides every random choice; two zoos of one seed are equal.
      chosen: classes that each model is fine-tuned on.
      steps: numbers of fine-tuning steps that models choose from.
      learning_rates: lowest and highest; each model's is log-uniform between them.
      weight_decays: lowest and highest; likewise.
      batch_size: images per fine-tuning step.
      pretraining_steps: steps that make the root.
      pretraining_batch_size: images per step.
      pretraining_rate: learning rate at its first step.
      models_at_once: models that one compiled program fine-tunes side by side.
    """

    trees: tuple[str, ...]
    models: int
    seed: int
    chosen: int
    steps: tuple[int, ...]
    learning_rates: tuple[float, float]
    weight_decays: tuple[float, float]
    batch_size: int
    pretraining_steps: int
    pretraining_batch_size: int
    pretraining_rate: float
    models_at_once: int

    def __post_init__(self) -> None:
        whole, bounds = f"a whole number from 1 to {_MOST}", "a pair 0 < lowest <= highest"
        checks: dict[str, tuple[Callable[[Any], bool], str]] = {
            "trees": (_are_trees, f"a tuple of {', '.join(TREES)}: at least one, each once"),
            "models": (_is_whole, whole),
            "seed": (lambda x: _is_whole(x, 0, 2**63 - 1), "a whole number from 0 to 2**63 - 1"),
            "chosen": (
                lambda x: _is_whole(x, 1, len(CLASSES)),
                f"a whole number from 1 to {len(CLASSES)}",
            ),
            "steps": (_are_steps, f"a tuple of one or more whole numbers from 1 to {_MOST}"),
            "learning_rates": (_are_bounds, bounds),
            "weight_decays": (_are_bounds, bounds),
            "batch_size": (_is_whole, whole),
            "pretraining_steps": (_is_whole, whole),
            "pretraining_batch_size": (_is_whole, whole),
            "pretraining_rate": (_is_positive, "a finite number > 0"),
            "models_at_once": (_is_whole, whole),
        }
        for name, (is_right, expected) in checks.items():
            value = getattr(self, name)
            if not is_right(value):
                raise ProbexError(f"{name}: {value!r} is not {expected}")


def _is_whole(value: Any, least: int = 1, most: int = _MOST) -> bool:
    return type(value) is int and least <= value <= most


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def _are_trees(value: Any) -> bool:
    known = isinstance(value, tuple) and all(type(x) is str and x in TREES for x in value)
    return known and 0 < len(value) == len(set(value))


def _are_steps(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_whole, value))


def _are_bounds(value: Any) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(map(_is_positive, value))
    return pair and value[0] <= value[1]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one model is fine-tuned.

    Attributes:
      index: the model's number in its tree.
      split: "train", "val" or "test".
      classes: numbers of its classes, in the (random) order of the classifier's outputs.
      seed: decides its batches.
      learning_rate: at the first step.
      weight_decay: of matrices, decoupled.
      steps: number of fine-tuning steps.
    """

    index: int
    split: str
    classes: tuple[int, ...]
    seed: int
    learning_rate: float
    weight_decay: float
    steps: int

    @property
    def class_names(self) -> list[str]:
        return [CLASSES[number] for number in self.classes]


def recipes(settings: Settings, tree: str) -> list[Recipe]:
    """The recipe of every model of a tree.

    A model's own choices depend on the seed, the tree and its index alone.
    """
    splits = _splits(settings, tree)
    return [_recipe(settings, tree, index, split) for index, split in enumerate(splits)]


def generator(settings: Settings, tree: str, *path: int) -> np.random.Generator:
    """A random generator of its own for one purpose in one tree."""
    return np.random.default_rng([settings.seed, zlib.crc32(tree.encode()), *path])


def _splits(settings: Settings, tree: str) -> list[str]:
    counts = {name: round(share * settings.models) for name, share in SPLITS.items()}
    counts["train"] += settings.models - sum(counts.values())
    in_order = np.repeat(list(counts), list(counts.values()))
    return generator(settings, tree, 0).permutation(in_order).tolist()


def _recipe(settings: Settings, tree: str, index: int, split: str) -> Recipe:
    rng = generator(settings, tree, 1, index)
    return Recipe(
        index=index,
        split=split,
        classes=tuple(rng.permutation(len(CLASSES))[: settings.chosen].tolist()),
        seed=int(rng.integers(2**31)),
        learning_rate=_log_uniform(rng, settings.learning_rates),
        weight_decay=_log_uniform(rng, settings.weight_decays),
        steps=int(rng.choice(settings.steps)),
    )


def _log_uniform(rng: np.random.Generator, bounds: Sequence[float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))
