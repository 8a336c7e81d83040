"""Pre-training of a tree's root: supervised, or by reconstruction of hidden patches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.zoo.miniature import vit
from probex_jax.zoo.miniature.params import Params, Shapes, initialise
from probex_jax.zoo.miniature.settings import Settings, Tree
from probex_jax.zoo.miniature.training import cross_entropy, fit

_SEEN_SHARE = 0.5  # of the patches, in masked pre-training


def root(tree: Tree, settings: Settings, images_YNSS: np.ndarray, seed: int) -> Params:
    """The pre-trained parameters that all models of a tree descend from.

    Args:
      tree: architecture and kind of pre-training.
      settings: the steps, batch size and learning rate of pre-training.
      images_YNSS: float32 training images by class.
      seed: decides initial weights and batches.

    Returns:
      Tensors by name, with a classifier of as many outputs as there are classes; in masked
      pre-training it stays as it was initialised.
    """
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    shapes = tree.architecture.shapes(len(images_YNSS))
    if tree.pretraining == "supervised":
        loss = functools.partial(_supervised, tree.architecture)
        extra: Shapes = {}
    else:
        assert isinstance(tree.architecture, vit.ViT)
        loss = functools.partial(_masked, tree.architecture)
        extra = _decoder_shapes(tree.architecture)

    @jax.jit
    def run(images_YNSS: jax.Array) -> Params:
        flat_NSS = images_YNSS.reshape(-1, *images_YNSS.shape[2:])
        per_class = images_YNSS.shape[1]

        def step_loss(params: Params, step: jax.Array):
            pick_key, loss_key = jax.random.split(jax.random.fold_in(batch_key, step))
            size = (settings.pretraining_batch_size,)
            picked_B = jax.random.randint(pick_key, size, 0, len(flat_NSS))
            return loss(params, flat_NSS[picked_B], picked_B // per_class, loss_key)

        return fit(
            step_loss,
            initialise(shapes | extra, init_key),
            steps=settings.pretraining_steps,
            learning_rate=settings.pretraining_rate,
            weight_decay=0.0,
        )

    trained = run(jnp.asarray(images_YNSS))
    return {name: trained[name] for name in shapes}


def _supervised(model, params: Params, images_BSS, labels_B, key):
    del key
    logits_YB, running = model.apply(params, images_BSS, train=True)
    return cross_entropy(logits_YB, labels_B), running


def _masked(model: vit.ViT, params: Params, images_BSS, labels_B, key):
    """Mean squared error of the hidden patches, as a masked autoencoder's.

    The encoder sees a random half of the patches. A decoder of one block, thrown away later,
    fills in the others from the class token alone, so that this token, which fine-tuning reads,
    learns to sum up an image. Which patches are hidden differs from batch to batch.
    """
    del labels_B
    patches_PTB = model.patches(images_BSS)
    order = jax.random.permutation(key, model.n_patches)
    n_seen = round(_SEEN_SHARE * model.n_patches)
    seen, hidden = order[:n_seen], order[n_seen:]
    x_DTB = model.embed(params, patches_PTB)
    x_DTB = jnp.concatenate([x_DTB[:, :1], x_DTB[:, 1 + seen]], axis=1)
    for index in range(model.num_hidden_layers):
        x_DTB = model.block(params, f"vit.encoder.layer.{index}.", x_DTB)
    summary_D1B = vit.norm(params, "vit.layernorm", x_DTB[:, :1])
    places_DT1 = params["decoder.position_embeddings"][hidden].T[:, :, None]
    x_DTB = vit.dense(params, "decoder.embed", summary_D1B) + places_DT1
    x_DTB = model.block(params, "decoder.block.", x_DTB)
    x_DTB = vit.norm(params, "decoder.layernorm", x_DTB)
    guess_PTB = vit.dense(params, "decoder.pixels", x_DTB)
    return jnp.square(guess_PTB - patches_PTB[:, hidden]).mean(), {}


def _decoder_shapes(model: vit.ViT) -> Shapes:
    width, pixels = model.hidden_size, model.patch_size**2
    return {
        "decoder.position_embeddings": (model.n_patches, width),
        **model.block_shapes("decoder.block."),
        "decoder.embed.weight": (width, width),
        "decoder.embed.bias": (width,),
        "decoder.layernorm.weight": (width,),
        "decoder.layernorm.bias": (width,),
        "decoder.pixels.weight": (pixels, width),
        "decoder.pixels.bias": (pixels,),
    }
