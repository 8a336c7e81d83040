"""Fine-tunes many models in one compiled program."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.zoo.miniature.data import Digits
from probex_jax.zoo.miniature.params import Params, Shapes, is_head
from probex_jax.zoo.miniature.recipes import ClassifierRecipe
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.training import cross_entropy, fit
from probex_jax.zoo.miniature.varied import Varied, augmented, repeated, varied
from probex_jax.zoo.miniature.vit import ViT


def fine_tune(
    model: ViT | ResNet,
    root: Params,
    digits: Digits,
    batch: Sequence[ClassifierRecipe],
    *,
    batch_size: int,
    max_steps: int,
    vary: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fine-tunes models side by side, in one program.

    Calls with equally many recipes and the same architecture share one compilation.

    Args:
      model: the architecture.
      root: pre-trained tensors, with any classifier; each model gets a new one.
      digits: images by class, of the architecture's size.
      batch: recipes of the N models.
      batch_size: images per step, of the recipes that have most.
      max_steps: the most steps that any recipe has.
      vary: whether the recipes may differ in number of images, batch size, augmentation and
        optimiser. If not, these are all images, `batch_size`, none and AdamW.

    Returns:
      The tensors by name, each [N, ...], and the accuracies [N] on the held-back images of the
      models' own classes.
    """
    body = {name: value for name, value in root.items() if not is_head(name)}
    choices: tuple[Any, ...] = (
        np.array([recipe.classes for recipe in batch], np.int32),
        np.array([recipe.seed for recipe in batch], np.uint32),
        np.array([recipe.steps for recipe in batch], np.int32),
        np.array([recipe.learning_rate for recipe in batch], np.float32),
        np.array([recipe.weight_decay for recipe in batch], np.float32),
    )
    if vary:
        choices += varied(batch), np.array([recipe.images for recipe in batch], np.int32)
    return jax.device_get(
        _fine_tune_many(
            model, batch_size, max_steps, body, digits.train, digits.held_back, *choices
        )
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fine_tune_many(model, batch_size, max_steps, body, train_YNSS, held_back_YNSS, *choices):
    def one(
        classes_C,
        seed,
        steps,
        learning_rate,
        weight_decay,
        own: Varied | None = None,
        n_images=train_YNSS.shape[1],
    ):
        class_key, image_key = jax.random.split(jax.random.key(seed))
        size = (max_steps, batch_size)
        labels = jax.random.randint(class_key, size, 0, len(classes_C))
        picked = jax.random.randint(image_key, size, 0, n_images)

        def batch(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            images_BSS = train_YNSS[classes_C[labels[step]], picked[step]]
            if own is None:
                return images_BSS, labels[step]
            images_BSS = augmented(own, images_BSS, jax.random.fold_in(image_key, step))
            return repeated(own, images_BSS), repeated(own, labels[step])

        def loss(params: Params, step: jax.Array):
            images_BSS, labels_B = batch(step)
            logits_YB, running = model.apply(params, images_BSS, train=True)
            return cross_entropy(logits_YB, labels_B), running

        params = fit(
            loss,
            body | new_head(model.shapes(len(classes_C))),
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            is_sgd=own and own.is_sgd,
        )
        return params, accuracy(model, params, held_back_YNSS[classes_C])

    return jax.vmap(one)(*choices)


def new_head(shapes: Shapes) -> Params:
    """A classifier of zeros.

    A random one would move all weights below it in directions of its own, which bury what the
    classes do: with weights normal(0.02) ProbeX told .61 of the classes of masked-pre-trained
    models, with zeros .83 (140 training models).
    """
    return {name: jnp.zeros(shape) for name, shape in shapes.items() if is_head(name)}


def accuracy(model: ViT | ResNet, params: Params, images_YNSS: jax.Array) -> jax.Array:
    """Share of the images that the model gives to their class.

    Args:
      model: the architecture.
      params: its tensors by name.
      images_YNSS: equally many images of every class, in the order of the model's outputs.
    """
    n_classes, per_class = images_YNSS.shape[:2]
    logits_YB, _ = model.apply(params, images_YNSS.reshape(-1, *images_YNSS.shape[2:]))
    labels_B = jnp.repeat(jnp.arange(n_classes), per_class)
    return (logits_YB.argmax(0) == labels_B).mean()
