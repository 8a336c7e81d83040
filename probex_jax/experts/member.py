"""One network of an expert: what it reads, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from probex_jax.errors import ProbexError
from probex_jax.experts.card import Card, MemberCard
from probex_jax.fitting.inference import logits, representations
from probex_jax.fitting.network import Network, build_network
from probex_jax.heads import unit
from probex_jax.matrices import Centred, LowRank
from probex_jax.model_files import reference_matrix


@dataclass(frozen=True)
class Member:
    """A network trained on one layer.

    Args:
      variables: its Linen variables.
      whole: the card of its expert.
      card: its own.
      encoders: encoders by name that are not ours.
    """

    variables: Mapping[str, Any]
    whole: Card
    card: MemberCard
    encoders: Mapping[str, type[nn.Module]]

    @property
    def layer(self) -> str:
        """Name of the layer it reads."""
        return self.card.layer

    @property
    def rep_dim(self) -> int:
        """Size T of its representations."""
        return self.network.encoder.rep_dim

    @cached_property
    def network(self) -> Network:
        """The Linen module, rebuilt from the cards."""
        return build_network(
            self.card.encoder,
            self.whole.head,
            len(self.whole.classes),
            logit_scale=self.whole.task.logit_scale,
            normalise=self.card.normalise or "none",
            centre_rank=self.card.centre_rank or 0,
            encoders=self.encoders,
        )

    def encode(self, x: Any) -> jax.Array:
        """[N, T] of [N, H, W]: so long that those of all members side by side are one vector.

        Aligned with text they are trained by their direction, and their length is the root of the
        weight: the cosine of two such vectors side by side is the weighted mean of the members'.
        """
        if self.network.head is None:  # one program for both
            return self.card.weight**-0.5 * self.logits(x)
        vectors_NT = representations(self.network, self.variables, self._as_read(x))
        if self.whole.text is not None:
            vectors_NT = unit(vectors_NT)
        return self.card.weight**0.5 * vectors_NT

    def logits(self, x: Any, texts_YD: Any = None) -> jax.Array:
        """[N, Y] of [N, H, W], times the weight."""
        x = self._as_read(x)
        return self.card.weight * logits(self.network, self.variables, x, texts_YD)

    def checked(self, x: Any) -> Any:
        """The matrices, if they are of the member's layer."""
        if not isinstance(x, LowRank | Centred | np.ndarray):
            x = jnp.asarray(x)
        rows, columns = self.card.shape
        if x.shape[:1] == (0,):
            raise ProbexError("no matrices: expected one or more")
        if len(x.shape) != 3 or tuple(x.shape[1:]) != self.card.shape:
            raise ProbexError(
                f"the expert of layer {self.layer} reads matrices of {rows}x{columns}, "
                f"got shape {tuple(x.shape)}"
            )
        if self.card.layout == "reference" and isinstance(x, LowRank | Centred):
            raise ProbexError(
                f"the expert of layer {self.layer} re-reads convolutions as the reference "
                "implementation does, which no factors can be"
            )
        return x

    def _as_read(self, x: Any) -> Any:
        """The matrices as the network reads them."""
        x = self.checked(x)
        return reference_matrix(x) if self.card.layout == "reference" else x

    def check_variables(self, path: Any) -> None:
        """Raises a ProbexError if the variables are not those of the network."""
        try:
            network = self.network
        except ProbexError as error:
            raise ProbexError(f"{path}: {error}") from None
        shape = self.card.shape[::-1] if self.card.layout == "reference" else self.card.shape
        dim = None if self.whole.text is None else self.whole.text.dim
        try:
            with jax.enable_x64(False):  # float32 whatever the user's own code computes in
                expected = _variables(network, shape, dim)
        except OverflowError:  # sizes on the card are no sizes of arrays
            expected = None
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), self.variables)
        if shapes != jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected):
            raise ProbexError(f"{path}: the parameters do not fit the encoder on the expert's card")


@lru_cache(256)
def _variables(network: Network, shape: tuple[int, int], text_dim: int | None) -> Any:
    """Shapes and dtypes of a network's variables; members are often alike."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    texts = None if text_dim is None else jax.ShapeDtypeStruct((1, text_dim), jnp.float32)
    # The key is made inside: outside, a program would be compiled for it.
    return jax.eval_shape(lambda x, texts: network.init(jax.random.key(0), x, texts), x, texts)


def placed(members: Sequence[Member], texts_YD: Any) -> jax.Array:
    """[Y, T] of text embeddings [Y, D], to be compared with what all members `encode`."""
    networks = tuple(member.network for member in members)
    variables, weights = zip(*((m.variables, m.card.weight) for m in members), strict=True)
    return _placed(networks, variables, weights, texts_YD)


@partial(jax.jit, static_argnames="networks")  # one program, called for each search
def _placed(networks: Any, variables: Any, weights: Any, texts_YD: Any) -> Any:
    of_each = zip(networks, variables, weights, strict=True)
    placed = [w**0.5 * network.apply(v, texts_YD, method="place") for network, v, w in of_each]
    return jnp.concatenate(placed, axis=1)
