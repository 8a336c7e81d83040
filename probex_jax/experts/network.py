"""An encoder and a head as one Linen module, built from the settings on an expert's card."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from probex_jax.encoders import Dense, ProbeX
from probex_jax.errors import ProbexError
from probex_jax.heads import ClassHead
from probex_jax.matrices import LowRank

# A new encoder is listed here; its fields are its settings.
ENCODERS: Mapping[str, type[nn.Module]] = {"probex": ProbeX, "dense": Dense}
HEADS = ("class", "none")


class Network(nn.Module):
    """An encoder and the head on it.

    Args:
      encoder: [N, H, W] matrices -> [N, T] representations.
      head: representations -> [N, Y] logits; None where the encoder's output is the logits.
    """

    encoder: nn.Module
    head: nn.Module | None

    def __call__(self, x: jax.Array | LowRank) -> jax.Array:
        """[N, H, W] weight matrices -> [N, Y] logits."""
        representation = self.encode(x)
        return representation if self.head is None else self.head(representation)

    def encode(self, x: jax.Array | LowRank) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T] representations."""
        return self.encoder(x)


def build_network(encoder: Mapping[str, Any], head: str, n_classes: int) -> Network:
    """A network from its settings.

    Args:
      encoder: {"name": "probex" or "dense", and the fields of that encoder}.
      head: "class" for a linear class head; "none" where the encoder itself has one output per
        class (its `rep_dim` is then the number of classes).
      n_classes: number of classes Y.

    Raises:
      ProbexError: if a name or a field is unknown or of a wrong type.

    Example:
      >>> build_network({"name": "dense"}, head="none", n_classes=20).encoder.rep_dim
      20
    """
    fields = dict(encoder)
    name = fields.pop("name", None)
    if name not in ENCODERS:
        raise ProbexError(f"encoder.name: {name!r} is not one of {', '.join(ENCODERS)}")
    if head not in HEADS:
        raise ProbexError(f"head: {head!r} is not one of {', '.join(HEADS)}")
    if head == "none":
        fields["rep_dim"] = n_classes
    for field, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ProbexError(f"encoder.{field}: {value!r} is not a positive whole number")
    try:
        return Network(ENCODERS[name](**fields), ClassHead(n_classes) if head == "class" else None)
    except TypeError as error:
        raise ProbexError(f"encoder {name}: {error}") from None
