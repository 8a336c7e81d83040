"""The recipe of each model of a zoo: its data, seed and training."""

import dataclasses
from typing import Any

import numpy as np

from probex_jax.zoo.miniature import concepts
from probex_jax.zoo.miniature.data import CLASSES, TRAIN_IMAGES
from probex_jax.zoo.miniature.settings import Settings, Variety, generator, log_uniform

SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}
HELD_OUT_SPLITS = {"val_holdout": 1 / 3, "test_holdout": 2 / 3}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes:
      index: the model's number in its tree.
      split: where it belongs.
      seed: decides its batches and its initial weights, where these are random.
      steps: number of training steps.
    """

    index: int
    split: str
    seed: int
    steps: int


@dataclasses.dataclass(frozen=True)
class TrainedRecipe(Recipe):
    """How one model is trained by gradient descent.

    Attributes:
      learning_rate: at the first step; a step of SGD is longer by a factor (`training.Sgd`).
      weight_decay: of matrices, decoupled.
      optimiser: one of `OPTIMISERS`.
      batch_size: images per step.
      augmented: whether its images are shifted and noised.
      seed_group: number of the group of models that share its seed; None if none do.
    """

    learning_rate: float
    weight_decay: float
    optimiser: str
    batch_size: int
    augmented: bool
    seed_group: int | None

    def attributes(self) -> dict[str, Any]:
        """What a table of models says of it, by column."""
        group = {} if self.seed_group is None else {"seed_group": f"group {self.seed_group}"}
        return {
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "steps": self.steps,
            "augmentation": "yes" if self.augmented else "no",
            "optimiser": self.optimiser,
            "batch_size": self.batch_size,
            **group,
        }


@dataclasses.dataclass(frozen=True)
class ClassifierRecipe(TrainedRecipe):
    """How one classifier is fine-tuned.

    Attributes:
      classes: numbers of its classes, in the (random) order of the classifier's outputs.
      images: how many of each class; the first ones of the data.
    """

    classes: tuple[int, ...]
    images: int

    @property
    def class_names(self) -> list[str]:
        return [CLASSES[number] for number in self.classes]

    def attributes(self) -> dict[str, Any]:
        return {**super().attributes(), "images": self.images}


@dataclasses.dataclass(frozen=True)
class LoraRecipe(TrainedRecipe):
    """How one LoRA is adapted.

    Attributes:
      concept: what its images show.
      images: numbers of its images among the concept's.
      rank: of the updates.
      scale: of the updates, alpha / rank.
    """

    concept: str
    images: tuple[int, ...]
    rank: int
    scale: float

    def attributes(self) -> dict[str, Any]:
        own = {"images": len(self.images), "rank": self.rank, "scale": self.scale}
        return {**super().attributes(), **own}


def classifier_recipes(settings: Settings, tree: str) -> list[ClassifierRecipe]:
    """The recipe of every model of a tree of classifiers.

    A model's own choices depend on the seed, the tree and its index alone.
    """
    counts = {name: round(share * settings.models) for name, share in SPLITS.items()}
    counts["train"] += settings.models - sum(counts.values())
    in_order = np.repeat(list(counts), list(counts.values()))
    splits = generator(settings, tree, 0).permutation(in_order).tolist()
    return [_classifier(settings, tree, index, split) for index, split in enumerate(splits)]


def _classifier(settings: Settings, tree: str, index: int, split: str) -> ClassifierRecipe:
    rng = generator(settings, tree, 1, index)
    classes = tuple(rng.permutation(len(CLASSES))[: settings.chosen].tolist())
    trained: dict[str, Any] = {
        "seed": int(rng.integers(2**31)),
        "learning_rate": log_uniform(rng, settings.learning_rates),
        "weight_decay": log_uniform(rng, settings.weight_decays),
        "steps": int(rng.choice(settings.steps)),
        "batch_size": settings.batch_size,
    }
    rng = generator(settings, tree, 4, index)
    trained |= _varied(settings, settings.variety, tree, rng)
    images = _log_uniform_whole(rng, settings.variety.images or (TRAIN_IMAGES, TRAIN_IMAGES))
    return ClassifierRecipe(index=index, split=split, classes=classes, images=images, **trained)


def _varied(
    settings: Settings, variety: Variety, tree: str, rng: np.random.Generator
) -> dict[str, Any]:
    """What variety says of one model: fields of its recipe."""
    fields: dict[str, Any] = {
        "augmented": bool(rng.random() < variety.augmented),
        "optimiser": str(rng.choice(variety.optimisers)),
        "seed_group": None,
    }
    if variety.steps:
        fields["steps"] = _log_uniform_whole(rng, variety.steps)
    if variety.batch_sizes:
        fields["batch_size"] = int(rng.choice(variety.batch_sizes))
    if variety.seed_groups:
        group = int(rng.integers(variety.seed_groups))
        fields["seed_group"] = group
        fields["seed"] = int(generator(settings, tree, 5, group).integers(2**31))
    return fields


def _log_uniform_whole(rng: np.random.Generator, bounds: tuple[int, ...]) -> int:
    """A log-uniform whole number, from the lower bound to the upper one."""
    return round(log_uniform(rng, bounds))


def held_out_concepts(settings: Settings, tree: str) -> frozenset[str]:
    """The concepts whose models are only in `val_holdout` and `test_holdout`."""
    lora = settings.lora
    return concepts.held_out(lora.digits, lora.transforms, generator(settings, tree, 3))


def lora_recipes(settings: Settings, tree: str) -> list[LoraRecipe]:
    """The recipe of every LoRA: equally many per concept, split concept by concept."""
    lora, held_out = settings.lora, held_out_concepts(settings, tree)
    in_order = [
        (concept, split)
        for concept in concepts.names(lora.digits, lora.transforms)
        for split in _splits(lora.models, HELD_OUT_SPLITS if concept in held_out else SPLITS)
    ]
    order = generator(settings, tree, 0).permutation(len(in_order))
    return [_lora(settings, tree, index, *in_order[place]) for index, place in enumerate(order)]


def _splits(n_models: int, shares: dict[str, float]) -> list[str]:
    """The splits of one concept's models: at least one each, the rest in the first."""
    first, *others = shares
    counts = {name: max(1, round(shares[name] * n_models)) for name in others}
    counts = {first: n_models - sum(counts.values())} | counts
    return [name for name, count in counts.items() for _ in range(count)]


def _lora(settings: Settings, tree: str, index: int, concept: str, split: str) -> LoraRecipe:
    lora, rng = settings.lora, generator(settings, tree, 1, index)
    n_images = int(rng.integers(*lora.images, endpoint=True))
    order = rng.permutation(TRAIN_IMAGES).tolist()
    trained: dict[str, Any] = {
        "seed": int(rng.integers(2**31)),
        "learning_rate": log_uniform(rng, lora.learning_rates),
        "steps": int(rng.choice(lora.steps)),
        "batch_size": lora.batch_size,
    }
    rng = generator(settings, tree, 4, index)
    trained |= _varied(settings, lora.variety, tree, rng)
    if lora.variety.images:
        n_images = _log_uniform_whole(rng, lora.variety.images)
    return LoraRecipe(
        index=index,
        split=split,
        concept=concept,
        images=tuple(order[:n_images]),
        rank=int(rng.choice(lora.ranks or (lora.rank,))),
        scale=float(rng.choice(lora.scales or (1.0,))),
        weight_decay=log_uniform(rng, lora.weight_decays) if lora.weight_decays else 0.0,
        **trained,
    )
