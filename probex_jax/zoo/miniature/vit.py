"""A small vision transformer, computed as transformers' ViTForImageClassification does.

Activations are [features, tokens, images]: with the images last, everything but the matrix
products is a plain vector loop on a CPU, and a linear layer is weight @ activation.

Letters: D width, F width inside the MLP, T tokens, A heads, E width of a head, P pixels of a
patch, S side of an image, B images, Y outputs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.zoo.miniature.params import Params, Shapes, linear, per_feature

_NORM_EPS = 1e-12  # the default of transformers' ViTConfig


@dataclasses.dataclass(frozen=True)
class ViT:
    """The architecture; the fields are those of transformers' ViTConfig."""

    image_size: int = 8
    patch_size: int = 2
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 128

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def config(self) -> dict[str, Any]:
        """The architecture's part of config.json."""
        return {
            "model_type": "vit",
            "architectures": ["ViTForImageClassification"],
            **dataclasses.asdict(self),
            "num_channels": 1,
            "qkv_bias": True,
            "hidden_act": "gelu",
            "layer_norm_eps": _NORM_EPS,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }

    def shapes(self, n_outputs: int) -> Shapes:
        """Shape of every tensor of the model's file, by name."""
        width, patch = self.hidden_size, self.patch_size
        shapes: Shapes = {
            "vit.embeddings.cls_token": (1, 1, width),
            "vit.embeddings.position_embeddings": (1, 1 + self.n_patches, width),
            "vit.embeddings.patch_embeddings.projection.weight": (width, 1, patch, patch),
            "vit.embeddings.patch_embeddings.projection.bias": (width,),
        }
        for index in range(self.num_hidden_layers):
            shapes |= self.block_shapes(f"vit.encoder.layer.{index}.")
        shapes |= with_bias("vit.layernorm", (width,))
        return shapes | with_bias("classifier", (n_outputs, width))

    def block_shapes(self, at: str) -> Shapes:
        """Shapes of one transformer block whose tensors' names begin with `at`."""
        width, mlp = self.hidden_size, self.intermediate_size
        shapes: Shapes = {}
        for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= with_bias(f"{at}attention.{name}", (width, width))
        shapes |= with_bias(at + "intermediate.dense", (mlp, width))
        shapes |= with_bias(at + "output.dense", (width, mlp))
        shapes |= with_bias(at + "layernorm_before", (width,))
        return shapes | with_bias(at + "layernorm_after", (width,))

    def apply(
        self, params: Params, images_BSS: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, Params]:
        """Logits of a batch of images.

        Args:
          params: tensors as `shapes` lists them.
          images_BSS: float32 grey images.
          train: makes no difference to this architecture.

        Returns:
          Logits [Y, B], and running statistics to keep (none here).
        """
        x_DTB = self.embed(params, self.patches(images_BSS))
        last = self.num_hidden_layers - 1
        for index in range(last):
            x_DTB = self.block(params, f"vit.encoder.layer.{index}.", x_DTB)
        # The classifier reads the first token alone, so the last block needs no other output.
        x_D1B = self.block(params, f"vit.encoder.layer.{last}.", x_DTB, n_queries=1)
        x_D1B = norm(params, "vit.layernorm", x_D1B)
        return dense(params, "classifier", x_D1B)[:, 0], {}

    def patches(self, images_BSS: jax.Array) -> jax.Array:
        """Cuts images into patches [P, T-1, B], both in reading order."""
        return cut_patches(images_BSS, self.patch_size)

    def embed(self, params: Params, patches_PTB: jax.Array) -> jax.Array:
        """Patches to tokens: projected, the class token in front, positions added; [D, T, B]."""
        at = "vit.embeddings."
        weight_DP = params[at + "patch_embeddings.projection.weight"].reshape(self.hidden_size, -1)
        x_DTB = linear(weight_DP, patches_PTB)
        x_DTB += per_feature(params[at + "patch_embeddings.projection.bias"], x_DTB)
        first_D1B = jnp.broadcast_to(
            params[at + "cls_token"].reshape(-1, 1, 1), (self.hidden_size, 1, x_DTB.shape[-1])
        )
        positions_DT1 = params[at + "position_embeddings"][0].T[:, :, None]
        return jnp.concatenate([first_D1B, x_DTB], axis=1) + positions_DT1

    def block(
        self, params: Params, at: str, x_DTB: jax.Array, n_queries: int | None = None
    ) -> jax.Array:
        """One pre-norm transformer block; returns its first `n_queries` tokens (default: all)."""
        h_DTB = norm(params, at + "layernorm_before", x_DTB)
        x_DQB = x_DTB[:, :n_queries] + self._attention(params, at + "attention.", h_DTB, n_queries)
        h_FQB = dense(
            params, at + "intermediate.dense", norm(params, at + "layernorm_after", x_DQB)
        )
        h_FQB = jax.nn.gelu(h_FQB, approximate=False)
        return x_DQB + dense(params, at + "output.dense", h_FQB)

    def _attention(
        self, params: Params, at: str, x_DTB: jax.Array, n_queries: int | None
    ) -> jax.Array:
        def heads(name: str, x_DTB: jax.Array) -> jax.Array:
            y_DTB = dense(params, f"{at}attention.{name}", x_DTB)
            return y_DTB.reshape(self.num_attention_heads, -1, *y_DTB.shape[1:])

        query_AEQB = heads("query", x_DTB[:, :n_queries])
        key_AETB, value_AETB = heads("key", x_DTB), heads("value", x_DTB)
        scores_AQTB = jnp.einsum("aeqb,aetb->aqtb", query_AEQB, key_AETB)
        shares_AQTB = jax.nn.softmax(scores_AQTB / query_AEQB.shape[1] ** 0.5, axis=2)
        mixed_AEQB = jnp.einsum("aqtb,aetb->aeqb", shares_AQTB, value_AETB)
        return dense(params, at + "output.dense", mixed_AEQB.reshape(-1, *mixed_AEQB.shape[2:]))


def cut_patches(images_BSS: jax.Array, patch: int) -> jax.Array:
    """Cuts square images into square patches [P, T, B], both in reading order."""
    side = images_BSS.shape[-1] // patch
    cut = images_BSS.reshape(-1, side, patch, side, patch)
    return cut.transpose(2, 4, 1, 3, 0).reshape(patch**2, side**2, -1)


def dense(params: Params, name: str, x_DTB: jax.Array) -> jax.Array:
    """The linear layer `name` over the features."""
    y_OTB = linear(params[name + ".weight"], x_DTB)
    return y_OTB + per_feature(params[name + ".bias"], y_OTB)


def norm(params: Params, name: str, x_DTB: jax.Array) -> jax.Array:
    """The layer normalisation `name` over the features."""
    centred = x_DTB - x_DTB.mean(0, keepdims=True)
    scaled = centred * jax.lax.rsqrt((centred**2).mean(0, keepdims=True) + _NORM_EPS)
    weight, bias = params[name + ".weight"], params[name + ".bias"]
    return scaled * per_feature(weight, x_DTB) + per_feature(bias, x_DTB)


def with_bias(name: str, weight: tuple[int, ...]) -> Shapes:
    """Shapes of the layer `name`: its weight, and a bias of as many outputs."""
    return {name + ".weight": weight, name + ".bias": weight[:1]}
