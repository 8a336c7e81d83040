"""An encoder and a head as one Linen module, built from settings."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from probex_jax.encoders import Dense, MVProbe, ProbeX, Rank, Size, Statistics
from probex_jax.errors import ProbexError
from probex_jax.heads import ClassHead, TextHead
from probex_jax.matrices import LowRank, Matrices, centred

# Encoders by their names on cards and in configs; their fields are their settings.
ENCODERS: Mapping[str, type[nn.Module]] = types.MappingProxyType(
    {
        "probex": ProbeX,
        "mvprobe": MVProbe,
        "dense": Dense,
        "statistics": Statistics,
        "size": Size,
        "rank": Rank,
    }
)
NO_MORE: Mapping[str, type[nn.Module]] = FrozenDict()
HEADS = ("class", "none", "text")
NORMALISATIONS = ("none", "scale", "centre")
# Fields that are no settings: Linen's own, and of our encoders what a caller computes in.
_LINEN = ("name", "parent")
_OURS = tuple(ENCODERS.values())
_COMPUTING = {"dtype": None, "param_dtype": jnp.float32, "precision": None}


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
    n_outputs: int,
    *,
    logit_scale: float = 1.0,
    normalise: str = "none",
    centre_rank: int = 0,
    encoders: Mapping[str, type[nn.Module]] = NO_MORE,
) -> Network:
    """A network from its settings.

    Args:
      encoder: {"name": one of `ENCODERS` or `encoders`, and the fields of that encoder}.
      head: "class" for a linear head; "none" where the encoder's own outputs are the logits (its
        `rep_dim` is then their number); "text" for cosines with texts.
      n_outputs: number of logits Y; ignored for a text head.
      logit_scale: scale of a text head's cosines.
      normalise, centre_rank: as `Network` takes them.
      encoders: encoders by name that are not ours.

    Returns:
      The network, with no variables yet.

    Raises:
      ProbexError: if a name or a field is unknown or of a wrong type.

    Example:
      >>> build_network({"name": "dense"}, head="none", n_outputs=20).encoder.rep_dim
      20
    """
    if not isinstance(encoder, Mapping):
        raise ProbexError(f"encoder: expected a name and fields, found {encoder!r}")
    name, fields = encoder.get("name"), {k: v for k, v in encoder.items() if k != "name"}
    encoders = {**ENCODERS, **encoders}
    if not isinstance(name, str) or name not in encoders:
        raise ProbexError(f"encoder.name: {name!r} is not one of {', '.join(encoders)}")
    if head not in HEADS:
        raise ProbexError(f"head: {head!r} is not one of {', '.join(HEADS)}")
    if head == "none" and fields.setdefault("rep_dim", n_outputs) != n_outputs:
        raise ProbexError(f"encoder.rep_dim: without a head it must be the {n_outputs} outputs")
    if normalise not in NORMALISATIONS:
        raise ProbexError(f"normalise: {normalise!r} is not one of {', '.join(NORMALISATIONS)}")
    if type(centre_rank) is not int or centre_rank < 0:
        raise ProbexError(f"centre_rank: {centre_rank!r} is not a whole number >= 0")
    known = _settings(encoders[name])
    for field, value in fields.items():
        if field not in known:
            raise ProbexError(f"encoder.{field}: {name} has only {', '.join(known)}")
        fields[field] = _checked(field, value, known[field])
    try:
        module = encoders[name](**fields)
    except (TypeError, ValueError) as error:  # a field is missing, or the encoder refuses one
        raise ProbexError(f"encoder {name}: {error}") from None
    return network_of(
        module,
        head,
        n_outputs,
        logit_scale=logit_scale,
        normalise=normalise,
        centre_rank=centre_rank if normalise == "centre" else 0,
    )


def network_of(
    encoder: nn.Module, head: str, n_outputs: int, *, logit_scale: float = 1.0, **normalisation: Any
) -> Network:
    """An encoder with one of `HEADS` on it; arguments as of `build_network`."""
    if not (type(logit_scale) in (int, float) and 0 < logit_scale < float("inf")):
        raise ProbexError(f"logit_scale: {logit_scale!r} is not a number > 0")
    of_name = {
        "class": lambda: ClassHead(n_outputs),
        "none": lambda: None,
        "text": lambda: TextHead(encoder.rep_dim, float(logit_scale)),
    }
    return Network(encoder, of_name[head](), **normalisation)


def encoder_settings(
    encoder: nn.Module, encoders: Mapping[str, type[nn.Module]] = NO_MORE
) -> dict[str, Any]:
    """What `build_network` makes an equal encoder from: its name and its fields, as JSON values.

    Raises:
      ProbexError: if the encoder is none of `ENCODERS` and `encoders`.

    Example:
      >>> encoder_settings(Dense(rep_dim=3))
      {'name': 'dense', 'rep_dim': 3, 'standardise': False}
    """
    for name, kind in {**ENCODERS, **encoders}.items():
        if type(encoder) is kind:
            fields = {field: getattr(encoder, field) for field in _settings(kind)}
            return {"name": name} | {
                field: list(value) if isinstance(value, tuple) else value
                for field, value in fields.items()
            }
    raise ProbexError(
        f"{type(encoder).__name__} is none of the encoders {', '.join(ENCODERS)}; give "
        'encoders={"a name": the class}'
    )


def exact(encoder: nn.Module) -> nn.Module:
    """One of our encoders computing in float32, as an expert does; others as they are."""
    return encoder.clone(**_COMPUTING) if isinstance(encoder, _OURS) else encoder


def _settings(encoder: type[nn.Module]) -> dict[str, Any]:
    """The settings of an encoder, with their types."""
    hints = get_type_hints(encoder)
    left_out = {*_LINEN, *(_COMPUTING if issubclass(encoder, _OURS) else ())}
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(encoder)
        if field.name not in left_out
    }


def _checked(field: str, value: Any, kind: Any) -> Any:
    """A field of an encoder, which a card or a config may hold wrongly."""
    if kind is bool and type(value) is not bool:
        raise ProbexError(f"encoder.{field}: {value!r} is not true or false")
    if kind is int and (type(value) is not int or value < 1):
        raise ProbexError(f"encoder.{field}: {value!r} is not a positive whole number")
    if kind is float and not (type(value) in (int, float) and abs(value) < float("inf")):
        raise ProbexError(f"encoder.{field}: {value!r} is not a finite number")
    if kind is str and not isinstance(value, str):
        raise ProbexError(f"encoder.{field}: {value!r} is not a string")
    if get_origin(kind) is tuple:  # in JSON a list
        inner = get_args(kind)[0]
        if not (isinstance(value, list | tuple) and all(isinstance(v, inner) for v in value)):
            raise ProbexError(f"encoder.{field}: {value!r} is not a list of {inner.__name__}")
        return tuple(value)
    return value
