"""Trains one model further, whole or by a LoRA: the steps of which families are made."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from probex_jax.zoo.miniature import concepts, data, denoiser
from probex_jax.zoo.miniature.denoiser import Denoiser
from probex_jax.zoo.miniature.finetuning import new_head
from probex_jax.zoo.miniature.params import Params, is_head
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.training import cross_entropy, fit
from probex_jax.zoo.miniature.vit import ViT

_DOWN_SCALE = 0.02  # of new down matrices, as in `adaptation`


class Objective(Protocol):
    """What a model is trained for, on some classes of images.

    It must be hashable: each is compiled once.
    """

    def start(self, params: Params, n_classes: int) -> Params:
        """The tensors at the first step, of those of the parent."""

    def loss(
        self, params: Params, classes_C: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Params]:
        """The loss on a random batch of some classes, and tensors that this step has set."""

    def adapted(self, params: Params) -> list[str]:
        """Names of the weights that a LoRA changes."""


@dataclasses.dataclass(frozen=True)
class Classify(Objective):
    """Telling classes of digits apart, by a new classifier.

    Attributes:
      model: the architecture.
      batch_size: images of a step.
    """

    model: ViT | ResNet
    batch_size: int

    def start(self, params: Params, n_classes: int) -> Params:
        body = {name: value for name, value in params.items() if not is_head(name)}
        return body | new_head(self.model.shapes(n_classes))

    def loss(
        self, params: Params, classes_C: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Params]:
        images_YNSS = data.load(self.model.image_size).train
        label_key, image_key = jax.random.split(key)
        labels_B = jax.random.randint(label_key, (self.batch_size,), 0, len(classes_C))
        picked_B = jax.random.randint(image_key, (self.batch_size,), 0, images_YNSS.shape[1])
        images_BSS = jnp.asarray(images_YNSS)[classes_C[labels_B], picked_B]
        logits_YB, running = self.model.apply(params, images_BSS, train=True)
        return cross_entropy(logits_YB, labels_B), running

    def adapted(self, params: Params) -> list[str]:
        ends = ("attention.query.weight", "attention.value.weight", "layer.0.convolution.weight")
        return [name for name in params if name.endswith(ends)]


@dataclasses.dataclass(frozen=True)
class Denoise(Objective):
    """Denoising images of some concepts.

    Attributes:
      model: the architecture.
      batch_size: images of a step.
    """

    model: Denoiser
    batch_size: int

    def start(self, params: Params, n_classes: int) -> Params:
        return params

    def loss(
        self, params: Params, classes_C: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Params]:
        images_YNSS = concepts.load(len(concepts.DIGITS), len(concepts.TRANSFORMS)).train
        label_key, image_key, noise_key = jax.random.split(key, 3)
        labels_B = jax.random.randint(label_key, (self.batch_size,), 0, len(classes_C))
        picked_B = jax.random.randint(image_key, (self.batch_size,), 0, images_YNSS.shape[1])
        images_BSS = jnp.asarray(images_YNSS)[classes_C[labels_B], picked_B]
        noise = denoiser.draw(noise_key, images_BSS)
        return denoiser.loss(self.model, params, images_BSS, *noise), {}

    def adapted(self, params: Params) -> list[str]:
        return [f"{layer}.weight" for layer in self.model.adapted]


def fine_tuned(
    objective: Objective,
    parent: Params,
    classes: Sequence[int],
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> Params:
    """The parent, all of its tensors trained further.

    Args:
      objective: what for.
      parent: tensors by name.
      classes: numbers of the classes.
      seed: decides the batches.
      steps: how many.
      learning_rate: of Adam, at the first step.
      weight_decay: of matrices, decoupled.

    Returns:
      The child's tensors.
    """
    start = objective.start(parent, len(classes))
    choices = jnp.array(classes), jax.random.key(seed), steps, learning_rate, weight_decay
    return jax.device_get(_fine_tuned(objective, start, *choices))


@functools.partial(jax.jit, static_argnums=0)
def _fine_tuned(objective, start, classes_C, key, steps, learning_rate, weight_decay):
    def loss(params: Params, step: jax.Array):
        return objective.loss(params, classes_C, jax.random.fold_in(key, step))

    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return fit(loss, start, steps=steps, **rates)


def adapted(
    objective: Objective,
    parent: Params,
    classes: Sequence[int],
    *,
    rank: int,
    seed: int,
    steps: int,
    learning_rate: float,
) -> tuple[Params, Params]:
    """The parent, some of its weights changed by a LoRA, and a classifier trained beside it.

    Args:
      objective: what for.
      parent: tensors by name.
      classes: numbers of the classes.
      rank: of the updates.
      seed: decides the batches and the new down matrices.
      steps: how many.
      learning_rate: of Adam, at the first step.

    Returns:
      The factors, "down NAME" [R, in] and "up NAME" [out, R] of each weight; and the tensors of the
      merged model.
    """
    start = objective.start(parent, len(classes))
    choices = jnp.array(classes), jax.random.key(seed), steps, learning_rate
    return jax.device_get(_adapted(objective, rank, start, *choices))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _adapted(objective, rank, start, classes_C, key, steps, learning_rate):
    init_key, key = jax.random.split(key)
    names = objective.adapted(start)
    head = {name: value for name, value in start.items() if is_head(name)}
    lora: Params = {}
    for place, name in enumerate(names):
        rows, *columns = start[name].shape
        shape = (rank, jnp.zeros(columns).size)
        lora[f"down {name}"] = _DOWN_SCALE * jax.random.normal(
            jax.random.fold_in(init_key, place), shape
        )
        lora[f"up {name}"] = jnp.zeros((rows, rank))

    def merged(lora: Params) -> Params:
        updates = {name: lora[f"up {name}"] @ lora[f"down {name}"] for name in names}
        changed = {n: start[n] + update.reshape(start[n].shape) for n, update in updates.items()}
        return {**start, **changed, **{name: lora[name] for name in head}}

    def loss(lora: Params, step: jax.Array):
        key_of_step = jax.random.fold_in(key, step)
        # Running statistics stay those of the base.
        return objective.loss(merged(lora), classes_C, key_of_step)[0], {}

    rates = {"learning_rate": learning_rate, "weight_decay": 0.0}
    lora = fit(loss, lora | head, steps=steps, **rates)
    return {name: value for name, value in lora.items() if name not in head}, merged(lora)
