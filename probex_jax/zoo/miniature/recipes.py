"""The recipe of each model of a zoo: its data, seed and training."""

import dataclasses

import numpy as np

from probex_jax.zoo.miniature import concepts
from probex_jax.zoo.miniature.data import CLASSES, TRAIN_IMAGES
from probex_jax.zoo.miniature.settings import Lora, Settings, generator, log_uniform

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
class ClassifierRecipe(Recipe):
    """How one classifier is fine-tuned.

    Attributes:
      classes: numbers of its classes, in the (random) order of the classifier's outputs.
      learning_rate: at the first step.
      weight_decay: of matrices, decoupled.
    """

    classes: tuple[int, ...]
    learning_rate: float
    weight_decay: float

    @property
    def class_names(self) -> list[str]:
        return [CLASSES[number] for number in self.classes]


@dataclasses.dataclass(frozen=True)
class LoraRecipe(Recipe):
    """How one LoRA is adapted.

    Attributes:
      concept: what its images show.
      images: numbers of its images among the concept's.
      learning_rate: at the first step.
    """

    concept: str
    learning_rate: float
    images: tuple[int, ...]


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
    return ClassifierRecipe(
        index=index,
        split=split,
        classes=tuple(rng.permutation(len(CLASSES))[: settings.chosen].tolist()),
        seed=int(rng.integers(2**31)),
        learning_rate=log_uniform(rng, settings.learning_rates),
        weight_decay=log_uniform(rng, settings.weight_decays),
        steps=int(rng.choice(settings.steps)),
    )


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
    return [
        _lora(lora, generator(settings, tree, 1, index), index, *in_order[place])
        for index, place in enumerate(order)
    ]


def _splits(n_models: int, shares: dict[str, float]) -> list[str]:
    """The splits of one concept's models: at least one each, the rest in the first."""
    first, *others = shares
    counts = {name: max(1, round(shares[name] * n_models)) for name in others}
    counts = {first: n_models - sum(counts.values())} | counts
    return [name for name, count in counts.items() for _ in range(count)]


def _lora(lora: Lora, rng: np.random.Generator, index: int, concept: str, split: str) -> LoraRecipe:
    n_images = int(rng.integers(*lora.images, endpoint=True))
    return LoraRecipe(
        index=index,
        split=split,
        concept=concept,
        images=tuple(rng.permutation(TRAIN_IMAGES)[:n_images].tolist()),
        seed=int(rng.integers(2**31)),
        learning_rate=log_uniform(rng, lora.learning_rates),
        steps=int(rng.choice(lora.steps)),
    )
