"""The settings of a miniature zoo."""

import dataclasses
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature import concepts
from probex_jax.zoo.miniature.data import CLASSES, IMAGE_SIZE, TRAIN_IMAGES
from probex_jax.zoo.miniature.vit import ViT

TREE_NAMES = ("MiniSupViT", "MiniMAE", "MiniResNet", "MiniLoRA")

MOST = 2**31 - 1  # what an int32 holds
WHOLE = f"a whole number from 1 to {MOST}"
_STEPS = f"a tuple of one or more whole numbers from 1 to {MOST}"
BOUNDS = "a pair 0 < lowest <= highest"
_RATE = "a finite number > 0"
_COUNTS = f"a pair of whole numbers 0 < fewest <= most <= {TRAIN_IMAGES}"

Checks = Mapping[str, tuple[Callable[[Any], bool], str]]

OPTIMISERS = ("AdamW", "SGD")


@dataclasses.dataclass(frozen=True)
class Variety:
    """In what the models of a tree differ beside what they are trained on; by default in nothing.

    Attributes:
      steps: fewest and most training steps, log-uniform; () to choose from the settings' own.
      images: fewest and most images of each class or concept, log-uniform; () for all, or as many
        as the settings of LoRAs say.
      augmented: share of models whose images are shifted and noised anew at every step.
      optimisers: some of `OPTIMISERS`; each model has one of them.
      batch_sizes: images per step, of which each model has one number, divisors of the largest;
        () for the settings' own.
      seed_groups: number of groups; all models of a group have one seed. 0 for one each.
    """

    steps: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    augmented: float = 0.0
    optimisers: tuple[str, ...] = OPTIMISERS[:1]
    batch_sizes: tuple[int, ...] = ()
    seed_groups: int = 0

    def __post_init__(self) -> None:
        checks: Checks = {
            "steps": (
                lambda x: x == () or (are_bounds(x) and _are_steps(x)),
                "() or a pair of whole numbers 0 < fewest <= most",
            ),
            "images": (lambda x: x == () or _are_counts(x), f"() or {_COUNTS}"),
            "augmented": (
                lambda x: type(x) in (int, float) and 0 <= x <= 1,
                "a number from 0 to 1",
            ),
            "optimisers": (
                lambda x: _are_distinct(x, OPTIMISERS),
                f"a tuple of {', '.join(OPTIMISERS)}: at least one, each once",
            ),
            "batch_sizes": (
                lambda x: x == () or (_are_steps(x) and all(max(x) % each == 0 for each in x)),
                "() or a tuple of divisors of the largest of them",
            ),
            "seed_groups": (lambda x: is_whole(x, 0), f"a whole number from 0 to {MOST}"),
        }
        check(self, checks, "variety.")


@dataclasses.dataclass(frozen=True)
class Lora:
    """What the tree MiniLoRA is made with.

    Attributes:
      digits: how many digits there are concepts of, from zero on.
      transforms: how many transforms of each, in the order of `concepts.TRANSFORMS`.
      models: LoRAs per concept.
      rank: of the updates.
      images: fewest and most images that a LoRA is adapted to.
      steps: numbers of adaptation steps that models choose from.
      learning_rates: lowest and highest; each model's is log-uniform between them.
      batch_size: noisy images per adaptation step.
      pretraining_steps: steps that make the denoiser.
      pretraining_batch_size: images per step.
      pretraining_rate: learning rate at its first step.
      models_at_once: models that one compiled program adapts side by side.
      ranks: of which each LoRA has one; () for all to have `rank`.
      scales: of updates, alpha / rank, of which each LoRA has one; () for all to have 1.
      weight_decays: lowest and highest; each LoRA's is log-uniform between them. () for none.
      variety: in what else LoRAs differ.
    """

    digits: int = 10
    transforms: int = 8
    models: int = 15
    rank: int = 4
    images: tuple[int, int] = (5, 10)
    steps: tuple[int, ...] = (50, 60, 70)
    learning_rates: tuple[float, float] = (8e-3, 2e-2)
    batch_size: int = 8
    pretraining_steps: int = 2000
    pretraining_batch_size: int = 32
    pretraining_rate: float = 2e-3
    models_at_once: int = 4
    ranks: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    weight_decays: tuple[float, ...] = ()
    variety: Variety = dataclasses.field(default_factory=Variety)

    def __post_init__(self) -> None:
        n_digits, n_transforms = len(concepts.DIGITS), len(concepts.TRANSFORMS)
        checks: Checks = {
            "digits": (
                lambda x: is_whole(x, 2, n_digits),
                f"a whole number from 2 to {n_digits}",
            ),
            "transforms": (
                lambda x: is_whole(x, 2, n_transforms),
                f"a whole number from 2 to {n_transforms}",
            ),
            "models": (lambda x: is_whole(x, 3), f"a whole number from 3 to {MOST}"),
            "rank": (is_whole, WHOLE),
            "images": (_are_counts, _COUNTS),
            "steps": (_are_steps, _STEPS),
            "learning_rates": (are_bounds, BOUNDS),
            "batch_size": (is_whole, WHOLE),
            "pretraining_steps": (is_whole, WHOLE),
            "pretraining_batch_size": (is_whole, WHOLE),
            "pretraining_rate": (_is_positive, _RATE),
            "models_at_once": (is_whole, WHOLE),
            "ranks": (lambda x: x == () or _are_steps(x), f"() or {_STEPS}"),
            "scales": (
                lambda x: isinstance(x, tuple) and all(map(_is_positive, x)),
                "() or a tuple of finite numbers > 0",
            ),
            "weight_decays": (lambda x: x == () or are_bounds(x), f"() or {BOUNDS}"),
            "variety": (lambda x: isinstance(x, Variety), "a Variety"),
        }
        check(self, checks, "lora.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a miniature zoo holds.

    Attributes:
      trees: which of `TREE_NAMES` to build.
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
      vit: the architecture of MiniSupViT and MiniMAE; the others take no notice of it.
      lora: all that MiniLoRA is made with, but for the seed; the others take no notice of it.
      variety: in what else classifiers differ.

    Example:
      >>> Settings(trees=("MiniMAE",), models=120).steps
      (100, 125, 150)
    """

    trees: tuple[str, ...] = TREE_NAMES
    models: int = 600
    seed: int = 0
    chosen: int = 10
    steps: tuple[int, ...] = (100, 125, 150)
    learning_rates: tuple[float, float] = (1e-3, 3e-3)
    weight_decays: tuple[float, float] = (1e-4, 1e-2)
    batch_size: int = 32
    pretraining_steps: int = 3000
    pretraining_batch_size: int = 64
    pretraining_rate: float = 2e-3
    models_at_once: int = 8
    vit: ViT = dataclasses.field(default_factory=ViT)
    lora: Lora = dataclasses.field(default_factory=Lora)
    variety: Variety = dataclasses.field(default_factory=Variety)

    def __post_init__(self) -> None:
        checks: Checks = {
            "trees": (
                lambda x: _are_distinct(x, TREE_NAMES),
                f"a tuple of {', '.join(TREE_NAMES)}: at least one, each once",
            ),
            "models": (is_whole, WHOLE),
            "seed": (lambda x: is_whole(x, 0, 2**63 - 1), "a whole number from 0 to 2**63 - 1"),
            "chosen": (
                lambda x: is_whole(x, 1, len(CLASSES)),
                f"a whole number from 1 to {len(CLASSES)}",
            ),
            "steps": (_are_steps, _STEPS),
            "learning_rates": (are_bounds, BOUNDS),
            "weight_decays": (are_bounds, BOUNDS),
            "batch_size": (is_whole, WHOLE),
            "pretraining_steps": (is_whole, WHOLE),
            "pretraining_batch_size": (is_whole, WHOLE),
            "pretraining_rate": (_is_positive, _RATE),
            "models_at_once": (is_whole, WHOLE),
            "vit": (lambda x: isinstance(x, ViT), "a ViT"),
            "lora": (lambda x: isinstance(x, Lora), "a Lora"),
            "variety": (lambda x: isinstance(x, Variety), "a Variety"),
        }
        check(self, checks)
        _check_vit(self.vit)


def _check_vit(vit: ViT) -> None:
    checks: Checks = {field.name: (is_whole, WHOLE) for field in dataclasses.fields(vit)}
    check(vit, checks, "vit.")
    divisors = {
        "image_size": (lambda x: x % IMAGE_SIZE == 0, f"a multiple of {IMAGE_SIZE}"),
        "patch_size": (lambda x: vit.image_size % x == 0, "a divisor of image_size"),
        "num_attention_heads": (lambda x: vit.hidden_size % x == 0, "a divisor of hidden_size"),
    }
    check(vit, divisors, "vit.")


def check(settings: Any, checks: Checks, prefix: str = "") -> None:
    """Raises ProbexError for the first field that fails its check."""
    for name, (is_right, expected) in checks.items():
        value = getattr(settings, name)
        if not is_right(value):
            raise ProbexError(f"{prefix}{name}: {value!r} is not {expected}")


def is_whole(value: Any, least: int = 1, most: int = MOST) -> bool:
    """Whether it is an int within bounds; True is none."""
    return type(value) is int and least <= value <= most


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def _are_distinct(value: Any, names: Sequence[str]) -> bool:
    known = isinstance(value, tuple) and all(type(x) is str and x in names for x in value)
    return known and 0 < len(value) == len(set(value))


def _are_steps(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(is_whole, value))


def are_bounds(value: Any) -> bool:
    """Whether it is a pair of finite numbers above zero, the lower first."""
    pair = isinstance(value, tuple) and len(value) == 2 and all(map(_is_positive, value))
    return pair and value[0] <= value[1]


def _are_counts(value: Any) -> bool:
    return are_bounds(value) and all(is_whole(x, 1, TRAIN_IMAGES) for x in value)


def stated(settings: Any) -> dict[str, Any]:
    """The fields of settings by name, those of inner ones, too.

    Fields newer than the first zoos are left out at their defaults, as in the cards of these.
    """
    newer = {"variety": Variety(), "ranks": (), "scales": (), "weight_decays": ()}
    said = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in newer or value != newer[field.name]:
            said[field.name] = stated(value) if dataclasses.is_dataclass(value) else value
    return said


class Seeded(Protocol):
    """Settings of any kind of tree."""

    @property
    def seed(self) -> int: ...


def generator(settings: Seeded, tree: str, *path: int) -> np.random.Generator:
    """A separate random generator for one purpose in one tree."""
    return np.random.default_rng([settings.seed, zlib.crc32(tree.encode()), *path])


def log_uniform(rng: np.random.Generator, bounds: Sequence[float]) -> float:
    """A log-uniform random number between the bounds."""
    return float(np.exp(rng.uniform(*np.log(bounds))))
