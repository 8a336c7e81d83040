"""The kinds of Model Trees: what differs in building them."""

import abc
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
import numpy as np

from probex_jax.zoo.miniature import concepts, data, hf_files, pretraining
from probex_jax.zoo.miniature.adaptation import adapt
from probex_jax.zoo.miniature.denoiser import Denoiser
from probex_jax.zoo.miniature.finetuning import fine_tune
from probex_jax.zoo.miniature.params import Params
from probex_jax.zoo.miniature.preview import NAME as PREVIEW
from probex_jax.zoo.miniature.preview import preview
from probex_jax.zoo.miniature.recipes import (
    ClassifierRecipe,
    LoraRecipe,
    Recipe,
    classifier_recipes,
    held_out_concepts,
    lora_recipes,
)
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.settings import Settings, Variety, stated
from probex_jax.zoo.miniature.vit import ViT

S = TypeVar("S")  # settings
R = TypeVar("R", bound=Recipe)
# From N recipes to the models' tensors, each [N, ...], and scores, each [N], both by name.
Train = Callable[[Sequence[R]], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]


class Kind(abc.ABC, Generic[S, R]):
    """A kind of tree.

    Attributes:
      weights: where in a model's folder its weights are, as a glob pattern.
      measure: the score that tells how well models have learnt.
    """

    weights: ClassVar[str]
    measure: ClassVar[str]

    @abc.abstractmethod
    def card(self, settings: S, tree: str) -> dict[str, Any]:
        """The tree's zoo.json, including all `settings` that determine the tree."""

    @abc.abstractmethod
    def recipes(self, settings: S, tree: str) -> list[R]:
        """The recipe of every model."""

    def attributes(self, recipe: R) -> Mapping[str, Any]:
        """What a table of the tree's models says of one, by column, beside its score."""
        return {}

    @abc.abstractmethod
    def models_at_once(self, settings: S) -> int:
        """Number of models that one compiled program trains side by side."""

    @abc.abstractmethod
    def root(self, settings: S, seed: int) -> dict[str, bytes]:
        """Pre-trains the root; returns its files by name."""

    @abc.abstractmethod
    def trainer(self, settings: S, root: Params) -> Train[R]:
        """The function that trains `models_at_once` models."""

    @abc.abstractmethod
    def folder_name(self, tree: str, index: int) -> str:
        """Name of a model's folder."""

    @abc.abstractmethod
    def files(
        self, settings: S, recipe: R, tensors: hf_files.Tensors, scores: Mapping[str, float]
    ) -> dict[str, bytes]:
        """A model's files by path in its folder, with its scores in their metadata."""


@dataclasses.dataclass(frozen=True)
class Classifiers(Kind[Settings, ClassifierRecipe]):
    """Image classifiers of an architecture, fine-tuned on some of the classes each.

    Attributes:
      architecture: of settings, the model's functions of parameters and images.
      pretraining: "supervised", or "masked": reconstruction of hidden patches, no labels.
    """

    architecture: Callable[[Settings], ViT | ResNet]
    pretraining: str
    weights: ClassVar[str] = "snapshots/*/model.safetensors"
    measure: ClassVar[str] = "accuracy"

    def card(self, settings: Settings, tree: str) -> dict[str, Any]:
        own = stated(settings)
        del own["trees"]  # a tree is the same whichever others are built beside it
        del own["lora"]
        if self.architecture(settings) in (ViT(), ResNet()):
            del own["vit"]  # as in cards from before there was this setting
        return {
            "classes": list(data.CLASSES),
            "pretraining": self.pretraining,
            "settings": own,
        }

    def recipes(self, settings: Settings, tree: str) -> list[ClassifierRecipe]:
        return classifier_recipes(settings, tree)

    def attributes(self, recipe: ClassifierRecipe) -> Mapping[str, Any]:
        return recipe.attributes()

    def models_at_once(self, settings: Settings) -> int:
        return settings.models_at_once

    def root(self, settings: Settings, seed: int) -> dict[str, bytes]:
        model = self.architecture(settings)
        images_YNSS = data.load(model.image_size).pretraining
        trained = pretraining.classifier(model, self.pretraining, settings, images_YNSS, seed)
        metadata = {"seed": seed, "steps": settings.pretraining_steps, "kind": self.pretraining}
        config = hf_files.config_json(model, data.ROOT_CLASSES)
        return hf_files.plain(config, hf_files.serialise(jax.device_get(trained), metadata))

    def trainer(self, settings: Settings, root: Params) -> Train[ClassifierRecipe]:
        model = self.architecture(settings)
        digits, variety = data.load(model.image_size), settings.variety

        def train(batch: Sequence[ClassifierRecipe]):
            tensors, accuracy = fine_tune(
                model,
                root,
                digits,
                batch,
                batch_size=max(variety.batch_sizes or (settings.batch_size,)),
                max_steps=max(variety.steps or settings.steps),
                vary=variety != Variety(),
            )
            return tensors, {"accuracy": accuracy}

        return train

    def folder_name(self, tree: str, index: int) -> str:
        return f"models--MiniZoo--{tree}__model_idx_{index:04d}"

    def files(
        self,
        settings: Settings,
        recipe: ClassifierRecipe,
        tensors: hf_files.Tensors,
        scores: Mapping[str, float],
    ) -> dict[str, bytes]:
        metadata = {
            "dataset_chosen_targets": recipe.class_names,
            "model_idx": recipe.index,
            "split": recipe.split,
            "seed": recipe.seed,
            **recipe.attributes(),
            **scores,
        }
        config = hf_files.config_json(self.architecture(settings), recipe.class_names)
        return hf_files.cached(config, hf_files.serialise(tensors, metadata))


@dataclasses.dataclass(frozen=True)
class Loras(Kind[Settings, LoraRecipe]):
    """LoRAs of a denoiser, adapted to a few images of one concept each.

    Attributes:
      architecture: the denoiser.
    """

    architecture: Denoiser
    weights: ClassVar[str] = "pytorch_lora_weights.safetensors"
    measure: ClassVar[str] = "loss_ratio"

    def card(self, settings: Settings, tree: str) -> dict[str, Any]:
        names, held_out = self._concepts(settings), held_out_concepts(settings, tree)
        return {
            "classes": list(names),
            "held_out": [name for name in names if name in held_out],
            "pretraining": "denoising",
            "settings": {"seed": settings.seed, "lora": stated(settings.lora)},
        }

    def recipes(self, settings: Settings, tree: str) -> list[LoraRecipe]:
        return lora_recipes(settings, tree)

    def attributes(self, recipe: LoraRecipe) -> Mapping[str, Any]:
        return recipe.attributes()

    def models_at_once(self, settings: Settings) -> int:
        return settings.lora.models_at_once

    def root(self, settings: Settings, seed: int) -> dict[str, bytes]:
        images_YNSS = self._images(settings).train
        trained = pretraining.denoiser(self.architecture, settings.lora, images_YNSS, seed)
        metadata = {"seed": seed, "steps": settings.lora.pretraining_steps, "kind": "denoising"}
        weights = hf_files.serialise(jax.device_get(trained), metadata)
        return hf_files.plain(self.architecture.config(), weights)

    def trainer(self, settings: Settings, root: Params) -> Train[LoraRecipe]:
        lora, images, names = settings.lora, self._images(settings), self._concepts(settings)
        variety = lora.variety

        def train(batch: Sequence[LoraRecipe]):
            return adapt(
                self.architecture,
                root,
                images,
                batch,
                names,
                rank=max(lora.ranks or (lora.rank,)),
                most_images=max(variety.images or lora.images),
                batch_size=max(variety.batch_sizes or (lora.batch_size,)),
                max_steps=max(variety.steps or lora.steps),
                vary=bool(lora.ranks or lora.scales or lora.weight_decays or variety != Variety()),
            )

        return train

    def folder_name(self, tree: str, index: int) -> str:
        return f"model_idx_{index:04d}"

    def files(
        self,
        settings: Settings,
        recipe: LoraRecipe,
        tensors: hf_files.Tensors,
        scores: Mapping[str, float],
    ) -> dict[str, bytes]:
        metadata = {
            "concept": recipe.concept,
            "model_idx": recipe.index,
            "split": recipe.split,
            "seed": recipe.seed,
            **recipe.attributes(),
            **scores,
        }
        if recipe.scale != 1:
            metadata["lora_adapter_metadata"] = json.dumps(
                {"transformer.r": recipe.rank, "transformer.lora_alpha": recipe.scale * recipe.rank}
            )
        own = {name: _of_rank(name, value, recipe.rank) for name, value in tensors.items()}
        shown = concepts.train_images(recipe.concept)[list(recipe.images)]
        return {self.weights: hf_files.serialise(own, metadata), PREVIEW: preview(shown)}

    def _concepts(self, settings: Settings) -> tuple[str, ...]:
        return concepts.names(settings.lora.digits, settings.lora.transforms)

    def _images(self, settings: Settings) -> concepts.Images:
        return concepts.load(settings.lora.digits, settings.lora.transforms)


def _of_rank(name: str, value: np.ndarray, rank: int) -> np.ndarray:
    """A factor of a LoRA without what is beyond its rank."""
    return value[:rank] if ".down." in name else value[:, :rank]


TREES: dict[str, Kind] = {
    "MiniSupViT": Classifiers(lambda settings: settings.vit, "supervised"),
    "MiniMAE": Classifiers(lambda settings: settings.vit, "masked"),
    "MiniResNet": Classifiers(lambda settings: ResNet(), "supervised"),
    "MiniLoRA": Loras(Denoiser()),
}
