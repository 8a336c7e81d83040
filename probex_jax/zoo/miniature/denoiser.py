"""A small denoising transformer: noisy image and noise level in, clean image out.

Activations are [features, tokens, images] and the letters those of `vit`; L features of the
noise level. Tensors are named as in diffusers' transformers.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.zoo.miniature.params import Params, Shapes
from probex_jax.zoo.miniature.vit import cut_patches, dense, norm, with_bias

# The linear layers of an attention that LoRAs adapt.
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """The architecture."""

    image_size: int = 8
    patch_size: int = 2
    width: int = 32
    n_blocks: int = 3
    n_heads: int = 4
    mlp_width: int = 64
    n_level_features: int = 16

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def adapted(self) -> list[str]:
        """The layers that a LoRA changes."""
        blocks = range(self.n_blocks)
        return [f"transformer_blocks.{i}.attn1.{name}" for i in blocks for name in ADAPTED]

    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        return {"_class_name": "MiniDenoiser", **dataclasses.asdict(self)}

    def shapes(self) -> Shapes:
        """Shape of every tensor of the root's file, by name."""
        width = self.width
        shapes: Shapes = {
            **with_bias("pos_embed.proj", (width, self.patch_size**2)),
            "pos_embed.pos_embed": (self.n_patches, width),
            **with_bias("time_embed.linear_1", (width, self.n_level_features)),
            **with_bias("time_embed.linear_2", (width, width)),
        }
        for index in range(self.n_blocks):
            at = f"transformer_blocks.{index}."
            for name in ADAPTED:
                shapes |= with_bias(f"{at}attn1.{name}", (width, width))
            shapes |= with_bias(at + "ff.net.0.proj", (self.mlp_width, width))
            shapes |= with_bias(at + "ff.net.2", (width, self.mlp_width))
            shapes |= with_bias(at + "norm1", (width,)) | with_bias(at + "norm2", (width,))
        shapes |= with_bias("norm_out", (width,))
        return shapes | with_bias("proj_out", (self.patch_size**2, width))

    def apply(self, params: Params, noisy_BSS: jax.Array, level_B: jax.Array) -> jax.Array:
        """The clean images [B, S, S] as the model guesses them.

        Args:
          params: tensors as `shapes` lists them.
          noisy_BSS: images with noise, as `add_noise` mixes them.
          level_B: how noisy each image is, from 0 to 1.
        """
        x_DTB = dense(params, "pos_embed.proj", cut_patches(noisy_BSS, self.patch_size))
        x_DTB += params["pos_embed.pos_embed"].T[:, :, None]
        h_DB = jax.nn.silu(dense(params, "time_embed.linear_1", self._level_features(level_B)))
        x_DTB += dense(params, "time_embed.linear_2", h_DB)[:, None]
        for index in range(self.n_blocks):
            at = f"transformer_blocks.{index}."
            x_DTB += self._attention(params, at + "attn1.", norm(params, at + "norm1", x_DTB))
            h_FTB = dense(params, at + "ff.net.0.proj", norm(params, at + "norm2", x_DTB))
            x_DTB += dense(params, at + "ff.net.2", jax.nn.relu(h_FTB))
        guess_PTB = dense(params, "proj_out", norm(params, "norm_out", x_DTB))
        return self._image(guess_PTB)

    def _image(self, patches_PTB: jax.Array) -> jax.Array:
        """Joins patches into images [B, S, S]."""
        side, patch = self.image_size // self.patch_size, self.patch_size
        cut = patches_PTB.reshape(patch, patch, side, side, -1)
        return cut.transpose(4, 2, 0, 3, 1).reshape(-1, self.image_size, self.image_size)

    def _level_features(self, level_B: jax.Array) -> jax.Array:
        """Waves over the noise level, from half a period to 2^(L/2 - 2) of them; [L, B]."""
        periods = 2.0 ** jnp.arange(self.n_level_features // 2)[:, None]
        angles = math.pi / 2 * periods * level_B[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])

    def _attention(self, params: Params, at: str, x_DTB: jax.Array) -> jax.Array:
        def heads(name: str) -> jax.Array:
            y_DTB = dense(params, at + name, x_DTB)
            return y_DTB.reshape(self.n_heads, -1, *y_DTB.shape[1:])

        query_AETB, key_AETB, value_AETB = heads("to_q"), heads("to_k"), heads("to_v")
        scores_AQTB = jnp.einsum("aeqb,aetb->aqtb", query_AETB, key_AETB)
        shares_AQTB = jax.nn.softmax(scores_AQTB / query_AETB.shape[1] ** 0.5, axis=2)
        mixed_AEQB = jnp.einsum("aqtb,aetb->aeqb", shares_AQTB, value_AETB)
        return dense(params, at + "to_out.0", mixed_AEQB.reshape(-1, *mixed_AEQB.shape[2:]))


def add_noise(images_BSS: jax.Array, noise_BSS: jax.Array, level_B: jax.Array) -> jax.Array:
    """Images and noise mixed with weights 1 - level and level."""
    level_B11 = level_B[:, None, None]
    return (1 - level_B11) * images_BSS + level_B11 * noise_BSS


def loss(
    model: Denoiser,
    params: Params,
    images_BSS: jax.Array,
    noise_BSS: jax.Array,
    level_B: jax.Array,
) -> jax.Array:
    """Mean squared error of the predicted clean images."""
    guess_BSS = model.apply(params, add_noise(images_BSS, noise_BSS, level_B), level_B)
    return jnp.square(guess_BSS - images_BSS).mean()


def draw(key: jax.Array, images_BSS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A training step's noise, normal [B, S, S], and its levels [B], uniform from 0 to 1."""
    noise_key, level_key = jax.random.split(key)
    noise_BSS = jax.random.normal(noise_key, images_BSS.shape)
    return noise_BSS, jax.random.uniform(level_key, images_BSS.shape[:1])
