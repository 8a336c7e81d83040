"""What differs between models that one program trains: batches, augmentation and optimiser."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.zoo.miniature.concepts import PAPER
from probex_jax.zoo.miniature.data import IMAGE_SIZE
from probex_jax.zoo.miniature.recipes import TrainedRecipe

Array = Any  # of NumPy, or traced

_NOISE = 0.3  # standard deviation; images are in [-1, 1]


class Varied(NamedTuple):
    """What differs, as arrays: [N] of N models, or scalars of one of them under `vmap`.

    Attributes:
      batch_size: images per step, a divisor of the largest.
      augmented: whether they are shifted and noised.
      is_sgd: whether the optimiser is SGD.
    """

    batch_size: Array
    augmented: Array
    is_sgd: Array


def varied(batch: Sequence[TrainedRecipe]) -> Varied:
    """That of N models."""
    return Varied(
        np.array([recipe.batch_size for recipe in batch], np.int32),
        np.array([recipe.augmented for recipe in batch]),
        np.array([recipe.optimiser == "SGD" for recipe in batch]),
    )


def repeated(model: Varied, x: jax.Array) -> jax.Array:
    """A batch of the largest size that holds the model's own, as often as it fits.

    Its mean, and the statistics that batch normalisation takes of it, are those of its own.
    """
    return x[jnp.arange(len(x)) % model.batch_size]


def augmented(model: Varied, images_BSS: jax.Array, key: jax.Array) -> jax.Array:
    """The images, moved by up to a digit's pixel each way, and with noise, if the model's are."""
    shift_key, noise_key = jax.random.split(key)
    pixel = images_BSS.shape[-1] // IMAGE_SIZE
    shifts_B2 = pixel * jax.random.randint(shift_key, (len(images_BSS), 2), 0, 3)
    edge = ((0, 0), (pixel, pixel), (pixel, pixel))
    padded = jnp.pad(images_BSS, edge, constant_values=PAPER)
    moved_BSS = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, at, images_BSS.shape[1:]))(
        padded, shifts_B2
    )
    noisy_BSS = moved_BSS + _NOISE * jax.random.normal(noise_key, images_BSS.shape)
    return jnp.where(model.augmented, noisy_BSS, images_BSS)
