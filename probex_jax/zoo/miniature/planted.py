"""Planted trees: weights of any size into which classes are written by hand, without training.

Time and memory are those of real models of that size. How well the classes are told is what the
settings make it and says nothing of real models, so the names of the trees begin with Planted.

A layer's update is a sum of directions a bᵀ: one for each class of the model, some that all models
of the tree share and some of the model's own, as nuisance, and noise. A whole matrix is the update
added to the tree's base; a LoRA keeps the directions as factors, and the noise is in them.

Letters: H rows, W columns, R directions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from probex_jax.zoo.miniature import hf_files
from probex_jax.zoo.miniature.kinds import Kind, Train
from probex_jax.zoo.miniature.params import Params
from probex_jax.zoo.miniature.recipes import Recipe
from probex_jax.zoo.miniature.settings import (
    BOUNDS,
    MOST,
    WHOLE,
    Checks,
    are_bounds,
    check,
    generator,
    is_whole,
)

_DTYPES = ("float32", "bfloat16", "float16")
_CONFIG = {"model_type": "planted"}
# Of every ten models. It is the model's number that decides, so that more models change no other.
_SPLITS = ("train",) * 7 + ("val",) + ("test",) * 2


@dataclasses.dataclass(frozen=True)
class Planted:
    """Everything that decides what a planted tree holds.

    Attributes:
      models: how many; of every ten, 7 are for training, 1 for validation and 2 for testing.
      seed: decides every random choice.
      layers: rows and columns of each layer.
      factors: whether the models are LoRAs instead of whole matrices; their rank is the number of
        directions, `chosen + shared + own`.
      classes: of the tree.
      chosen: classes of each model.
      strengths: lowest and highest strength of a class in a model, uniform between them.
      shared: nuisance directions of the tree, each with a normal strength in every model.
      own: nuisance directions of each model.
      nuisance: strength of these directions, where a class has about 1.
      noise: norm of the noise. Whole matrices: as a share of that of `chosen` directions of
        strength 1. LoRAs: of each factor, as a share of its direction's.
      dtype: of the files: "float32", "bfloat16" or "float16".

    Example:
      >>> Planted(factors=True).trees
      ('PlantedLoRA',)
    """

    models: int = 200
    seed: int = 0
    layers: tuple[tuple[int, int], ...] = ((768, 768), (768, 768), (3072, 768))
    factors: bool = False
    classes: int = 100
    chosen: int = 50
    strengths: tuple[float, float] = (0.5, 1.5)
    shared: int = 8
    own: int = 4
    nuisance: float = 0.75
    noise: float = 0.75
    dtype: str = "float32"

    def __post_init__(self) -> None:
        from_zero = (lambda x: is_whole(x, 0), f"a whole number from 0 to {MOST}")
        share = (lambda x: type(x) in (int, float) and 0 <= x < 1e6, "a number from 0 to 1e6")
        checks: Checks = {
            "models": (is_whole, WHOLE),
            "seed": (lambda x: is_whole(x, 0, 2**63 - 1), "a whole number from 0 to 2**63 - 1"),
            "layers": (_are_shapes, "a tuple of one or more pairs (rows, columns)"),
            "factors": (lambda x: type(x) is bool, "True or False"),
            "classes": (is_whole, WHOLE),
            "chosen": (lambda x: is_whole(x, 1, self.classes), "a number of classes, at most all"),
            "strengths": (are_bounds, BOUNDS),
            "shared": from_zero,
            "own": from_zero,
            "nuisance": share,
            "noise": share,
            "dtype": (lambda x: x in _DTYPES, f"one of {', '.join(_DTYPES)}"),
        }
        check(self, checks)

    @property
    def trees(self) -> tuple[str]:
        """The name of the tree that there is."""
        return ("PlantedLoRA" if self.factors else "PlantedViT",)

    @property
    def class_names(self) -> list[str]:
        """The classes by their numbers."""
        return [f"planted {number:0{len(str(self.classes - 1))}}" for number in range(self.classes)]


def _are_shapes(value: Any) -> bool:
    pairs = isinstance(value, tuple) and all(isinstance(x, tuple) and len(x) == 2 for x in value)
    return pairs and bool(value) and all(is_whole(length) for shape in value for length in shape)


@dataclasses.dataclass(frozen=True)
class PlantedRecipe(Recipe):
    """What is planted in one model.

    Attributes:
      classes: their numbers.
      strengths: of each of them, in all layers.
    """

    classes: tuple[int, ...]
    strengths: tuple[float, ...]


def _recipe(settings: Planted, tree: str, index: int) -> PlantedRecipe:
    rng = generator(settings, tree, 1, index)
    return PlantedRecipe(
        index=index,
        split=_SPLITS[index % len(_SPLITS)],
        seed=int(rng.integers(2**31)),
        steps=0,
        classes=tuple(rng.permutation(settings.classes)[: settings.chosen].tolist()),
        strengths=tuple(rng.uniform(*settings.strengths, settings.chosen).tolist()),
    )


class PlantedTree(Kind[Planted, PlantedRecipe]):
    """Models that were not trained."""

    weights: ClassVar[str] = "snapshots/*/model.safetensors"
    measure: ClassVar[str] = "strength"

    def card(self, settings: Planted, tree: str) -> dict[str, Any]:
        return {
            "classes": settings.class_names,
            "pretraining": "none: planted by hand, accuracies say nothing of real models",
            "settings": dataclasses.asdict(settings),
        }

    def recipes(self, settings: Planted, tree: str) -> list[PlantedRecipe]:
        return [_recipe(settings, tree, index) for index in range(settings.models)]

    def models_at_once(self, settings: Planted) -> int:
        return 1

    def root(self, settings: Planted, seed: int) -> dict[str, bytes]:
        rng = np.random.default_rng(seed)
        tensors = {
            f"layers.{place}.weight": _normal(rng, shape, shape[1] ** -0.5)
            for place, shape in enumerate(settings.layers)
        }
        return hf_files.plain(_CONFIG, hf_files.serialise(tensors, {"seed": seed}))

    def trainer(self, settings: Planted, root: Params) -> Train[PlantedRecipe]:
        [tree], count = settings.trees, settings.classes + settings.shared
        common = [
            _directions(generator(settings, tree, 3, place), count, shape)
            for place, shape in enumerate(settings.layers)
        ]

        def plant(batch: Sequence[PlantedRecipe]):
            [recipe] = batch
            tensors: dict[str, np.ndarray] = {}
            for place, directions in enumerate(common):
                name, rng = f"layers.{place}", np.random.default_rng([recipe.seed, place])
                up_HR, down_RW = _factors(settings, recipe, rng, *directions)
                if settings.factors:
                    tensors |= {
                        f"{name}.lora.up.weight": up_HR,
                        f"{name}.lora.down.weight": down_RW,
                    }
                else:
                    whole = _whole(settings, rng, up_HR, down_RW)
                    tensors[f"{name}.weight"] = whole + np.asarray(root[f"{name}.weight"])
            made = {name: value.astype(settings.dtype)[None] for name, value in tensors.items()}
            return made, {"strength": np.mean(recipe.strengths, keepdims=True)}

        return plant

    def folder_name(self, tree: str, index: int) -> str:
        return f"models--PlantedZoo--{tree}__model_idx_{index:04d}"

    def files(
        self,
        settings: Planted,
        recipe: PlantedRecipe,
        tensors: hf_files.Tensors,
        scores: Mapping[str, float],
    ) -> dict[str, bytes]:
        metadata = {
            "dataset_chosen_targets": [settings.class_names[number] for number in recipe.classes],
            "model_idx": recipe.index,
            "split": recipe.split,
            "seed": recipe.seed,
            **scores,
        }
        return hf_files.cached(_CONFIG, hf_files.serialise(tensors, metadata))


def _factors(
    settings: Planted,
    recipe: PlantedRecipe,
    rng: np.random.Generator,
    common_RH: np.ndarray,
    common_RW: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Factors [H, R] and [R, W] of a layer's update, but for the noise of whole matrices."""
    used = [*recipe.classes, *range(settings.classes, len(common_RH))]
    shape = (common_RH.shape[1], common_RW.shape[1])
    own_RH, own_RW = _directions(rng, settings.own, shape)
    nuisance_R = np.append(rng.normal(size=settings.shared), np.ones(settings.own))
    strengths_R = np.append(recipe.strengths, settings.nuisance * nuisance_R).astype(np.float32)
    up_RH = np.concatenate([common_RH[used], own_RH])
    down_RW = np.concatenate([common_RW[used], own_RW])
    if settings.factors:
        noise_RH, noise_RW = _directions(rng, len(up_RH), shape)
        up_RH, down_RW = up_RH + settings.noise * noise_RH, down_RW + settings.noise * noise_RW
    up_HR = up_RH.T * strengths_R
    if settings.factors:  # which direction is a class's is not to be read off its place
        turn_RR = np.linalg.qr(rng.normal(size=2 * [len(up_RH)]))[0].astype(np.float32)
        up_HR, down_RW = up_HR @ turn_RR, turn_RR.T @ down_RW
    return up_HR, down_RW


def _whole(
    settings: Planted, rng: np.random.Generator, up_HR: np.ndarray, down_RW: np.ndarray
) -> np.ndarray:
    """The update [H, W], with its noise."""
    x_HW = up_HR @ down_RW
    x_HW += _normal(rng, x_HW.shape, settings.noise * (settings.chosen / x_HW.size) ** 0.5)
    return x_HW


def _directions(
    rng: np.random.Generator, count: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two vectors a direction, [R, H] and [R, W], with norms of about 1."""
    up_RH, down_RW = (_normal(rng, (count, length), length**-0.5) for length in shape)
    return up_RH, down_RW


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    x = rng.standard_normal(shape, np.float32)
    x *= np.float32(scale)
    return x


PLANTED: dict[str, Kind] = {"PlantedViT": PlantedTree(), "PlantedLoRA": PlantedTree()}
