"""An encoder and a head as one Linen module, built from the settings on an expert's card."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders import Dense, MVProbe, ProbeX
from probex_jax.encoders.mvprobe import BRANCHES
from probex_jax.errors import ProbexError
from probex_jax.heads import ClassHead, TextHead
from probex_jax.matrices import LowRank, Matrices, centred

# A new encoder is listed here; its fields are its settings.
ENCODERS: Mapping[str, type[nn.Module]] = {
    "probex": ProbeX,
    "mvprobe": MVProbe,
    "dense": Dense,
}
HEADS = ("class", "none", "text")
NORMALISATIONS = ("none", "scale", "centre")
_LINEN_FIELDS = ("name", "parent")


class Network(nn.Module):
    """An encoder and the head on it, reading matrices as they differ from the rest of their tree.

    Args:
      encoder: [N, H, W] matrices -> [N, T] representations.
      head: representations -> [N, Y] logits, a `TextHead` from text embeddings as well; None where
        the encoder's output is the logits.
      normalise: "centre" to subtract the tree's centre and divide by its scale, "scale" to divide
        alone, "none". Both are variables of the collection `tree`, which no optimiser touches.
      centre_rank: rank of a centre that is kept as factors; 0 for one that is not.
    """

    encoder: nn.Module
    head: nn.Module | None
    normalise: str = "none"
    centre_rank: int = 0

    def __call__(self, x: Matrices, texts: jax.Array | None = None) -> jax.Array:
        """[N, H, W] weight matrices, of a text head [Y, D] embeddings -> [N, Y] logits."""
        representation = self.encode(x)
        if self.head is None:
            return representation
        return self.head(representation) if texts is None else self.head(representation, texts)

    @nn.compact
    def encode(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T] representations."""
        if self.normalise == "centre":
            x = centred(x, self._centre(*x.shape[-2:]))
        if self.normalise != "none":
            x = x / self.variable("tree", "scale", jnp.ones, ()).value
        return self.encoder(x)

    def _centre(self, rows: int, columns: int) -> jax.Array | LowRank:
        if not self.centre_rank:
            return self.variable("tree", "centre", jnp.zeros, (rows, columns)).value
        up = self.variable("tree", "centre_up", jnp.zeros, (rows, self.centre_rank))
        down = self.variable("tree", "centre_down", jnp.zeros, (self.centre_rank, columns))
        return LowRank(up.value, down.value)

    def place(self, texts: jax.Array) -> jax.Array:
        """[Y, D] text embeddings -> [Y, T] unit vectors; for a text head."""
        return self.head.place(texts)  # type: ignore[union-attr]


def build_network(
    encoder: Mapping[str, Any],
    head: str,
    n_classes: int,
    *,
    logit_scale: float = 1.0,
    normalise: str = "none",
    centre_rank: int = 0,
) -> Network:
    """A network from its settings.

    Args:
      encoder: {"name": one of `ENCODERS`, and the fields of that encoder}.
      head: "class" for a linear class head; "none" where the encoder itself has one output per
        class (its `rep_dim` is then the number of classes); "text" for cosines with texts.
      n_classes: number of classes Y; of no matter to a text head.
      logit_scale: scale of a text head's cosines.
      normalise, centre_rank: as `Network` takes them.

    Returns:
      The network, with no variables yet.

    Raises:
      ProbexError: if a name or a field is unknown or of a wrong type.

    Example:
      >>> build_network({"name": "dense"}, head="none", n_classes=20).encoder.rep_dim
      20
    """
    if not isinstance(encoder, Mapping):
        raise ProbexError(f"encoder: expected a name and fields, found {encoder!r}")
    fields = dict(encoder)
    name = fields.pop("name", None)
    if not isinstance(name, str) or name not in ENCODERS:
        raise ProbexError(f"encoder.name: {name!r} is not one of {', '.join(ENCODERS)}")
    if head not in HEADS:
        raise ProbexError(f"head: {head!r} is not one of {', '.join(HEADS)}")
    if head == "none" and fields.setdefault("rep_dim", n_classes) != n_classes:
        raise ProbexError(f"encoder.rep_dim: without a head it must be the {n_classes} classes")
    # Linen adds two fields of its own.
    known = [field for field in ENCODERS[name].__dataclass_fields__ if field not in _LINEN_FIELDS]
    for field, value in fields.items():
        if field not in known:
            raise ProbexError(f"encoder.{field}: {name} has only {', '.join(known)}")
        fields[field] = _checked(field, value, ENCODERS[name].__dataclass_fields__[field].type)
    if normalise not in NORMALISATIONS:
        raise ProbexError(f"normalise: {normalise!r} is not one of {', '.join(NORMALISATIONS)}")
    if type(centre_rank) is not int or centre_rank < 0:
        raise ProbexError(f"centre_rank: {centre_rank!r} is not a whole number >= 0")
    try:
        module = ENCODERS[name](**fields)
    except TypeError as error:  # a field without a default is missing
        raise ProbexError(f"encoder {name}: {error}") from None
    rank = centre_rank if normalise == "centre" else 0
    return Network(module, _head(head, module, n_classes, logit_scale), normalise, rank)


def _checked(field: str, value: Any, kind: Any) -> Any:
    """A field of an encoder, which a card or a config may hold wrongly."""
    if kind is bool and type(value) is not bool:
        raise ProbexError(f"encoder.{field}: {value!r} is not true or false")
    if kind is int and (type(value) is not int or value < 1):
        raise ProbexError(f"encoder.{field}: {value!r} is not a positive whole number")
    if kind in (bool, int):
        return value
    # What is left are MVProbe's branches, in JSON a list.
    if not (isinstance(value, list | tuple) and value and set(value) <= set(BRANCHES)):
        raise ProbexError(f"encoder.{field}: {value!r} is not some of {', '.join(BRANCHES)}")
    return tuple(name for name in BRANCHES if name in value)


def _head(head: str, encoder: Any, n_classes: int, logit_scale: float) -> nn.Module | None:
    if head == "text":
        if not (type(logit_scale) in (int, float) and 0 < logit_scale < float("inf")):
            raise ProbexError(f"logit_scale: {logit_scale!r} is not a number > 0")
        return TextHead(encoder.rep_dim, float(logit_scale))
    return ClassHead(n_classes) if head == "class" else None
