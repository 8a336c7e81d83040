"""What a miniature zoo is made with, and what each of its models is to become."""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature.data import CLASSES
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.vit import ViT

SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}


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
        for name in self.trees:
            if name not in TREES:
                raise ProbexError(f"trees: no tree {name!r}; there are {', '.join(TREES)}")
        if len(set(self.trees)) < max(1, len(self.trees)):
            raise ProbexError(f"trees: {self.trees} should name at least one tree, each once")
        if not 0 < self.chosen <= len(CLASSES):
            raise ProbexError(f"chosen: {self.chosen} is not between 1 and {len(CLASSES)} classes")
        if not self.steps:
            raise ProbexError("steps: empty; expected one or more numbers of steps")
        for name in ("models", "batch_size", "pretraining_batch_size", "models_at_once"):
            if getattr(self, name) < 1:
                raise ProbexError(f"{name}: {getattr(self, name)} is less than 1")
        for steps in (*self.steps, self.pretraining_steps):
            if steps < 1:
                raise ProbexError(f"steps: {steps} is less than 1")
        for name in ("learning_rates", "weight_decays"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ProbexError(f"{name}: expected 0 < lowest <= highest, found {low}, {high}")


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
