"""Pre-trains a tree's root: supervised, by reconstructing hidden patches, or by denoising."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.zoo.miniature import vit
from probex_jax.zoo.miniature.denoiser import Denoiser, draw
from probex_jax.zoo.miniature.denoiser import loss as denoising_loss
from probex_jax.zoo.miniature.params import Params, Shapes, initialise
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.settings import Lora, Settings
from probex_jax.zoo.miniature.training import cross_entropy, fit

_SEEN_SHARE = 0.5  # of the patches, in masked pre-training


def classifier(
    model: vit.ViT | ResNet,
    kind: str,
    settings: Settings,
    images_YNSS: np.ndarray,
    seed: int | jax.Array,
) -> Params:
    """The pre-trained parameters that all models of a tree of classifiers descend from.

    Args:
      model: the architecture.
      kind: "supervised" or "masked".
      settings: the steps, batch size and learning rate of pre-training.
      images_YNSS: float32 training images by class.
      seed: decides initial weights and batches; it may be traced.

    Returns:
      Tensors by name, with a classifier of as many outputs as there are classes.
    """
    init_key, decoder_key, step_key = jax.random.split(jax.random.key(seed), 3)
    shapes = model.shapes(len(images_YNSS))
    params = initialise(shapes, init_key)
    if kind == "supervised":
        return _fit(_supervised, model, _schedule(settings), images_YNSS, params, step_key)
    assert isinstance(model, vit.ViT)
    params |= initialise(_decoder_shapes(model), decoder_key)
    params = _fit(_masked, model, _schedule(settings), images_YNSS, params, step_key)
    return {name: params[name] for name in shapes}


def denoiser(model: Denoiser, lora: Lora, images_YNSS: np.ndarray, seed: int | jax.Array) -> Params:
    """The denoiser that all LoRAs change, trained on images of all concepts.

    Args:
      model: the architecture.
      lora: the steps, batch size and learning rate of pre-training.
      images_YNSS: float32 training images by concept.
      seed: decides initial weights, batches and noise; it may be traced.
    """
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = initialise(model.shapes(), init_key)
    return _fit(_denoising, model, _schedule(lora), images_YNSS, params, step_key)


def _schedule(settings: Settings | Lora) -> tuple[int, int, float]:
    return (
        settings.pretraining_steps,
        settings.pretraining_batch_size,
        settings.pretraining_rate,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fit(loss, model, schedule, images_YNSS, params: Params, key):
    steps, batch_size, rate = schedule
    flat_NSS = images_YNSS.reshape(-1, *images_YNSS.shape[2:])

    def step_loss(params: Params, step: jax.Array):
        pick_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
        picked_B = jax.random.randint(pick_key, (batch_size,), 0, len(flat_NSS))
        return loss(model, params, flat_NSS[picked_B], picked_B // images_YNSS.shape[1], loss_key)

    return fit(step_loss, params, steps=steps, learning_rate=rate, weight_decay=0.0)


def _supervised(model, params: Params, images_BSS, labels_B, key):
    del key
    logits_YB, running = model.apply(params, images_BSS, train=True)
    return cross_entropy(logits_YB, labels_B), running


def _masked(model: vit.ViT, params: Params, images_BSS, labels_B, key):
    """Mean squared error of the hidden patches, as a masked autoencoder's.

    The encoder sees a random half of the patches; a decoder of one block, thrown away later,
    fills in the others. Which patches are hidden differs from batch to batch.
    """
    del labels_B
    patches_PTB = model.patches(images_BSS)
    x_DTB = model.embed(params, patches_PTB)
    order = jax.random.permutation(key, model.n_patches)
    n_seen = round(_SEEN_SHARE * model.n_patches)
    seen, hidden = order[:n_seen], order[n_seen:]
    x_DTB = jnp.concatenate([x_DTB[:, :1], x_DTB[:, 1 + seen]], axis=1)
    for index in range(model.num_hidden_layers):
        x_DTB = model.block(params, f"vit.encoder.layer.{index}.", x_DTB)
    x_DTB = vit.dense(params, "decoder.embed", vit.norm(params, "vit.layernorm", x_DTB))
    filler_DTB = jnp.broadcast_to(
        params["decoder.mask_token"].reshape(-1, 1, 1), (len(x_DTB), len(hidden), x_DTB.shape[-1])
    )
    x_DTB = jnp.concatenate([x_DTB, filler_DTB], axis=1)
    places = jnp.concatenate([jnp.zeros(1, seen.dtype), 1 + seen, 1 + hidden])
    x_DTB += params["decoder.position_embeddings"][places].T[:, :, None]
    x_DTB = model.block(params, "decoder.block.", x_DTB)
    x_DTB = vit.norm(params, "decoder.layernorm", x_DTB[:, 1 + n_seen :])
    guess_PTB = vit.dense(params, "decoder.pixels", x_DTB)
    return jnp.square(guess_PTB - patches_PTB[:, hidden]).mean(), {}


def _denoising(model: Denoiser, params: Params, images_BSS, labels_B, key):
    del labels_B
    return denoising_loss(model, params, images_BSS, *draw(key, images_BSS)), {}


def _decoder_shapes(model: vit.ViT) -> Shapes:
    width, pixels = model.hidden_size, model.patch_size**2
    return {
        "decoder.mask_token": (width,),
        "decoder.position_embeddings": (1 + model.n_patches, width),
        **model.block_shapes("decoder.block."),
        "decoder.embed.weight": (width, width),
        "decoder.embed.bias": (width,),
        "decoder.layernorm.weight": (width,),
        "decoder.layernorm.bias": (width,),
        "decoder.pixels.weight": (pixels, width),
        "decoder.pixels.bias": (pixels,),
    }
