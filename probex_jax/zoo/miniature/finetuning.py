"""Fine-tuning of many models as one compiled program."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.zoo.miniature import params as parameters
from probex_jax.zoo.miniature.data import Digits
from probex_jax.zoo.miniature.params import Params
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.settings import Recipe
from probex_jax.zoo.miniature.training import cross_entropy, fit
from probex_jax.zoo.miniature.vit import ViT

FineTune = Callable[[Sequence[Recipe]], tuple[dict[str, np.ndarray], np.ndarray]]


def fine_tuner(
    model: ViT | ResNet, root: Params, digits: Digits, batch_size: int, max_steps: int
) -> FineTune:
    """A compiled function that fine-tunes a batch of models side by side.

    Args:
      model: the architecture.
      root: pre-trained tensors, with any classifier; each model gets a new one.
      digits: images by class, of the architecture's size.
      batch_size: images per step.
      max_steps: the most steps that any recipe has.

    Returns:
      A function of recipes, always equally many to stay with one compilation, to the tensors
      by name, each [N, ...], and the accuracies [N] on the held-back images of the models' own
      classes. N is the number of recipes.
    """
    body = {name: value for name, value in root.items() if not parameters.is_head(name)}
    train_YNSS, held_back_YNSS = jnp.asarray(digits.train), jnp.asarray(digits.held_back)

    def one(body, train_YNSS, held_back_YNSS, classes_C, seed, steps, learning_rate, weight_decay):
        head_key, class_key, image_key = jax.random.split(jax.random.key(seed), 3)
        n_classes, size = len(classes_C), (max_steps, batch_size)
        labels = jax.random.randint(class_key, size, 0, n_classes)
        picked = jax.random.randint(image_key, size, 0, train_YNSS.shape[1])
        head_shapes = {
            name: shape
            for name, shape in model.shapes(n_classes).items()
            if parameters.is_head(name)
        }

        def loss(params: Params, step: jax.Array):
            images_BSS = train_YNSS[classes_C[labels[step]], picked[step]]
            logits_YB, running = model.apply(params, images_BSS, train=True)
            return cross_entropy(logits_YB, labels[step]), running

        params = fit(
            loss,
            body | parameters.initialise(head_shapes, head_key),
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
        return params, accuracy(model, params, held_back_YNSS[classes_C])

    many = jax.jit(jax.vmap(one, in_axes=(None, None, None, 0, 0, 0, 0, 0)))

    def fine_tune(batch: Sequence[Recipe]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        choices = (
            np.array([recipe.classes for recipe in batch], np.int32),
            np.array([recipe.seed for recipe in batch], np.uint32),
            np.array([recipe.steps for recipe in batch], np.int32),
            np.array([recipe.learning_rate for recipe in batch], np.float32),
            np.array([recipe.weight_decay for recipe in batch], np.float32),
        )
        return jax.device_get(many(body, train_YNSS, held_back_YNSS, *choices))

    return fine_tune


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
