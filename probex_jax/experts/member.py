"""One network of an expert: what it reads, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.errors import ProbexError
from probex_jax.experts.network import Network, build_network
from probex_jax.experts.objective import logits, representations
from probex_jax.heads import unit
from probex_jax.matrices import Centred, LowRank
from probex_jax.model_files import reference_matrix

# What the card of a member says, beside its weight; of an expert on one layer that is its own card.
MEMBER_CARD = {"encoder": dict, "layer": str, "shape": list}

# How a member reads its layer's matrices: as they are, or re-read by `reference_matrix`.
LAYOUTS = ("canonical", "reference")


@dataclass(frozen=True)
class Member:
    """A network trained on one layer.

    Args:
      variables: its Linen variables.
      about: the card of its expert: head, classes, text.
      card: its own: encoder, layer, shape, layout, normalise, centre_rank.
      weight: of its logits among those of the other members; all add up to one.
    """

    variables: Mapping[str, Any]
    about: Mapping[str, Any]
    card: Mapping[str, Any]
    weight: float

    @property
    def layer(self) -> str:
        """Name of the layer it reads."""
        return self.card["layer"]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the layer's matrices."""
        rows, columns = self.card["shape"]
        return rows, columns

    @property
    def layout(self) -> str:
        """One of `LAYOUTS`."""
        return self.card.get("layout", "canonical")

    @property
    def rep_dim(self) -> int:
        """Size T of its representations."""
        return self.network.encoder.rep_dim

    @cached_property
    def network(self) -> Network:
        """The Linen module, rebuilt from the cards."""
        about, card = self.about, self.card
        return build_network(
            card["encoder"],
            about["head"],
            len(about["classes"]),
            logit_scale=about["text"]["logit_scale"] if about["head"] == "text" else 1.0,
            normalise=card.get("normalise", "none"),
            centre_rank=card.get("centre_rank", 0),
        )

    def encode(self, x: Any) -> jax.Array:
        """[N, T] of [N, H, W]: so long that those of all members side by side are one vector.

        Aligned with text they are trained by their direction, and their length is the root of the
        weight: the cosine of two such vectors side by side is the weighted mean of the members'.
        """
        vectors_NT = _encode(self.network, self.variables, self._as_read(x))
        if self.about["head"] == "text":
            vectors_NT = unit(vectors_NT)
        return self.weight**0.5 * vectors_NT

    def place(self, texts_YD: Any) -> jax.Array:
        """[Y, T] of text embeddings [Y, D], to be compared with `encode`."""
        return self.weight**0.5 * _place(self.network, self.variables, texts_YD)

    def logits(self, x: Any, texts_YD: Any = None) -> jax.Array:
        """[N, Y] of [N, H, W], times the weight."""
        return self.weight * _logits(self.network, self.variables, self._as_read(x), texts_YD)

    def checked(self, x: Any) -> Any:
        """The matrices, if they are of the member's layer."""
        if not isinstance(x, LowRank | Centred):
            x = jnp.asarray(x)
        if x.shape[:1] == (0,):
            raise ProbexError("no matrices: expected one or more")
        if tuple(x.shape[1:]) != self.shape:
            raise ProbexError(
                f"the expert of layer {self.layer} reads matrices of "
                f"{self.shape[0]}x{self.shape[1]}, got shape {tuple(x.shape)}"
            )
        if self.layout == "reference" and isinstance(x, LowRank | Centred):
            raise ProbexError(
                f"the expert of layer {self.layer} re-reads convolutions as the reference "
                "implementation does, which no factors can be"
            )
        return x

    def _as_read(self, x: Any) -> Any:
        """The matrices as the network reads them."""
        x = self.checked(x)
        return reference_matrix(x) if self.layout == "reference" else x

    def check_variables(self, path: Any) -> None:
        """Raises a ProbexError if the variables are not those of the network."""
        try:
            network = self.network
        except ProbexError as error:
            raise ProbexError(f"{path}: {error}") from None
        shape = self.shape[::-1] if self.layout == "reference" else self.shape
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        texts = None
        if self.about["head"] == "text":
            texts = jax.ShapeDtypeStruct((1, self.about["text"]["dim"]), jnp.float32)
        expected = jax.eval_shape(network.init, jax.random.key(0), x, texts)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected)
        if jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), self.variables) != shapes:
            raise ProbexError(f"{path}: the parameters do not fit the encoder on the expert's card")


@partial(jax.jit, static_argnames="network")
def _encode(network: Network, variables: Mapping[str, Any], x: Any) -> jax.Array:
    return representations(network, variables, x)


@partial(jax.jit, static_argnames="network")
def _place(network: Network, variables: Mapping[str, Any], texts_YD: Any) -> Any:
    return network.apply(variables, texts_YD, method="place")


@partial(jax.jit, static_argnames="network")
def _logits(network: Network, variables: Mapping[str, Any], x: Any, texts_YD: Any) -> jax.Array:
    return logits(network, variables, x, texts_YD)
