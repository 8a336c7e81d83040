"""CLIP's text tower in Flax.

Dimension letters, here and in `clip`: N texts, S tokens of a text, D width, A attention heads,
K channels of a head, E dimension of the joint space of texts and images.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

# In full float32 on accelerators, too: texts are few, and the vectors must not depend on where.
_Dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class TextTower(nn.Module):
    """A causal transformer over the tokens of a text, read out at its end token, projected.

        e = P norm(x_L)[end],   x_l+1 = x_l' + mlp(norm(x_l')),   x_l' = x_l + attention(norm(x_l))

    What follows the end token has no influence: attention is causal.

    Args:
      vocab_size: number of tokens known.
      context: number of positions known; S may be less.
      width: D.
      mlp_width: width inside of the blocks' two-layer networks.
      n_layers: number of blocks.
      n_heads: A; divides D.
      dim: E.
      activation: "quick_gelu", x sigmoid(1.702 x), or "gelu", the exact one.
      epsilon: added to the variance in normalisations.
      end_token: the text is read out at the first such token; None: at its greatest token, as
        CLIP did before its configs named the end token correctly.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tower = TextTower(
      ...     vocab_size=50, context=8, width=16, mlp_width=32, n_layers=1, n_heads=4, dim=12,
      ...     activation="quick_gelu", epsilon=1e-5, end_token=49)
      >>> tokens_NS = jnp.array([[48, 7, 49, 0], [48, 3, 9, 49]])
      >>> e, _ = jax.eval_shape(tower.init_with_output, jax.random.key(0), tokens_NS)
      >>> e.shape
      (2, 12)

    References:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
      ICML 2021, Section 2.4.
    """

    vocab_size: int
    context: int
    width: int
    mlp_width: int
    n_layers: int
    n_heads: int
    dim: int
    activation: str
    epsilon: float
    end_token: int | None

    @nn.compact
    def __call__(self, tokens_NS: jax.Array) -> jax.Array:
        """[N, S] int32 tokens -> [N, E] projected embeddings, of any length."""
        token = nn.Embed(self.vocab_size, self.width, name="token_embedding")
        position = nn.Embed(self.context, self.width, name="position_embedding")
        x_NSD = token(tokens_NS) + position(jnp.arange(tokens_NS.shape[1]))[None]
        for number in range(self.n_layers):
            block = _Block(
                self.n_heads, self.mlp_width, self.activation, self.epsilon, name=f"layers_{number}"
            )
            x_NSD = block(x_NSD)
        x_NSD = _norm(self.epsilon, "final_layer_norm")(x_NSD)
        is_end = tokens_NS if self.end_token is None else tokens_NS == self.end_token
        end_N = jnp.argmax(is_end, axis=1)
        x_ND = jnp.take_along_axis(x_NSD, end_N[:, None, None], axis=1)[:, 0]
        return _Dense(self.dim, use_bias=False, name="text_projection")(x_ND)


class _Block(nn.Module):
    n_heads: int
    mlp_width: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, x_NSD: jax.Array) -> jax.Array:
        attention = _Attention(self.n_heads, name="self_attn")
        x_NSD = x_NSD + attention(_norm(self.epsilon, "layer_norm1")(x_NSD))
        mlp = _Mlp(self.mlp_width, self.activation, name="mlp")
        return x_NSD + mlp(_norm(self.epsilon, "layer_norm2")(x_NSD))


class _Attention(nn.Module):
    n_heads: int

    @nn.compact
    def __call__(self, x_NSD: jax.Array) -> jax.Array:
        n, s, d = x_NSD.shape

        def heads(name: str) -> jax.Array:
            return _Dense(d, name=name)(x_NSD).reshape(n, s, self.n_heads, d // self.n_heads)

        q_NSAK, k_NSAK, v_NSAK = heads("q_proj"), heads("k_proj"), heads("v_proj")
        logits = _einsum("nsak,ntak->nast", q_NSAK, k_NSAK) * q_NSAK.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones([s, s], bool))[None, None]
        weights = nn.softmax(jnp.where(causal, logits, -jnp.inf))
        mixed_NSAK = _einsum("nast,ntak->nsak", weights, v_NSAK)
        return _Dense(d, name="out_proj")(mixed_NSAK.reshape(n, s, d))


class _Mlp(nn.Module):
    mlp_width: int
    activation: str

    @nn.compact
    def __call__(self, x_NSD: jax.Array) -> jax.Array:
        hidden = ACTIVATIONS[self.activation](_Dense(self.mlp_width, name="fc1")(x_NSD))
        return _Dense(x_NSD.shape[-1], name="fc2")(hidden)


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
    # The fast variance, E[x²] - E[x]², loses digits where the mean is large.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)
