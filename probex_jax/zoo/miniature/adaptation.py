"""Trains many LoRAs of one denoiser in one compiled program."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.zoo.miniature import denoiser
from probex_jax.zoo.miniature.concepts import Images
from probex_jax.zoo.miniature.denoiser import Denoiser
from probex_jax.zoo.miniature.params import Params
from probex_jax.zoo.miniature.recipes import LoraRecipe
from probex_jax.zoo.miniature.training import Sgd, fit
from probex_jax.zoo.miniature.varied import Varied, augmented, repeated, varied

# Standard deviation of new down matrices. Small, so that the images soon dominate them: with 0.18,
# a layer's usual 1/sqrt(in), ProbeX recognised .53 of the concepts, with 0.02 .76.
_DOWN_SCALE = 0.02
_EVALUATION_SEED = 20241
_SGD = Sgd(gain=300.0, clip=0.03)  # gradients of LoRAs are small, as their factors are


def adapt(
    model: Denoiser,
    root: Params,
    images: Images,
    batch: Sequence[LoraRecipe],
    concepts: Sequence[str],
    *,
    rank: int,
    most_images: int,
    batch_size: int,
    max_steps: int,
    vary: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Adapts LoRAs side by side, in one program.

    Calls with equally many recipes and the same sizes share one compilation.

    Args:
      model: the architecture.
      root: the denoiser's tensors.
      images: by concept.
      batch: recipes of the N models.
      concepts: names of the concepts, in the order of `images`.
      rank: of the updates that have the highest.
      most_images: the most images that any recipe has.
      batch_size: noisy images per step, of the recipes that have most.
      max_steps: the most steps that any recipe has.
      vary: whether the recipes may differ in rank, scale, weight decay, batch size, augmentation
        and optimiser. If not, these are `rank`, 1, 0, `batch_size`, none and AdamW.

    Returns:
      The LoRAs' tensors by name, each [N, ...], zero beyond a recipe's own rank; and by name [N]:
      `loss` on the held-back images of the model's own concept, and `loss_ratio`, that loss divided
      by the root's.
    """
    choices: tuple[Any, ...] = (
        np.array([concepts.index(recipe.concept) for recipe in batch], np.int32),
        np.array([np.resize(recipe.images, most_images) for recipe in batch], np.int32),
        np.array([len(recipe.images) for recipe in batch], np.int32),
        np.array([recipe.seed for recipe in batch], np.uint32),
        np.array([recipe.steps for recipe in batch], np.int32),
        np.array([recipe.learning_rate for recipe in batch], np.float32),
    )
    if vary:
        choices += (
            varied(batch),
            np.array([recipe.weight_decay for recipe in batch], np.float32),
            np.array([recipe.rank for recipe in batch], np.int32),
            np.array([recipe.scale for recipe in batch], np.float32),
        )
    lora, scores = jax.device_get(
        _adapt_many(
            model, rank, batch_size, max_steps, root, images.train, images.held_back, *choices
        )
    )
    return _unstacked(model, lora), scores


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _adapt_many(model, rank, batch_size, max_steps, root, train_YNSS, held_back_YNSS, *choices):
    def one(
        concept,
        images_I,
        n_images,
        seed,
        steps,
        learning_rate,
        own: Varied | None = None,
        weight_decay=0.0,
        own_rank=None,
        scale=1.0,
    ):
        init_key, image_key, noise_key = jax.random.split(jax.random.key(seed), 3)
        own_ISS = train_YNSS[concept, images_I]
        picked = jax.random.randint(image_key, (max_steps, batch_size), 0, n_images)

        def loss(lora: Params, step: jax.Array):
            clean_BSS = own_ISS[picked[step]]
            noise = denoiser.draw(jax.random.fold_in(noise_key, step), clean_BSS)
            if own is not None:
                clean_BSS = augmented(own, clean_BSS, jax.random.fold_in(image_key, step))
                clean_BSS, noise = jax.tree.map(partial(repeated, own), (clean_BSS, noise))
            merged = merge(model, root, lora, scale)
            return denoiser.loss(model, merged, clean_BSS, *noise), {}

        lora = fit(
            loss,
            new_lora(model, rank, init_key, own_rank),
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            is_sgd=own and own.is_sgd,
            sgd=_SGD,
        )
        ours = held_back_loss(model, merge(model, root, lora, scale), held_back_YNSS[concept])
        roots = held_back_loss(model, root, held_back_YNSS[concept])
        return lora, {"loss": ours, "loss_ratio": ours / roots}

    return jax.vmap(one)(*choices)


def new_lora(
    model: Denoiser, rank: int, key: jax.Array, own_rank: jax.Array | int | None = None
) -> Params:
    """A LoRA that changes nothing yet.

    What lies beyond its own rank is zero, and so are the gradients of that.

    The matrices of all adapted layers are stacked, as one step on a large array is faster than
    many on small ones: `down` [layers, rank, in] is random, `up` [layers, out, rank] zero.
    """
    shape = (len(model.adapted), rank, model.width)
    down = _DOWN_SCALE * jax.random.normal(key, shape)
    if own_rank is not None:
        down = jnp.where(jnp.arange(rank)[:, None] < own_rank, down, 0)
    return {"down": down, "up": jnp.zeros((shape[0], model.width, rank))}


def merge(model: Denoiser, root: Params, lora: Params, scale: jax.Array | float = 1.0) -> Params:
    """The denoiser's tensors plus the LoRA's updates, scale · up @ down."""
    updates = scale * (lora["up"] @ lora["down"])
    names = [f"{layer}.weight" for layer in model.adapted]
    return root | {name: root[name] + updates[place] for place, name in enumerate(names)}


def _unstacked(model: Denoiser, lora: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of N LoRAs, by their names in diffusers' files."""
    return {
        f"transformer.{layer}.lora.{part}.weight": stacked[:, place]
        for place, layer in enumerate(model.adapted)
        for part, stacked in lora.items()
    }


def held_back_loss(model: Denoiser, params: Params, images_BSS: jax.Array) -> jax.Array:
    """The loss on images with fixed noise, at levels spaced evenly from 0 to 1."""
    noise_BSS, level_B = map(jnp.asarray, evaluation_noise(len(images_BSS)))
    return denoiser.loss(model, params, images_BSS, noise_BSS, level_B)


def evaluation_noise(n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """The noise [B, 8, 8] and levels [B] of every model's evaluation, in every zoo."""
    noise = np.random.default_rng(_EVALUATION_SEED).normal(size=(n_images, 8, 8))
    level = (np.arange(n_images) + 0.5) / n_images
    return noise.astype(np.float32), level.astype(np.float32)
