"""A trained Tree Expert: what it is, what it answers, and how it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.member import LAYOUTS, MEMBER_CARD, Member
from probex_jax.language import TextEncoder, embed, text_encoder
from probex_jax.matrices import Matrices
from probex_jax.model_files import ModelFile

Layers = ArrayLike | Matrices | Mapping[str, Any]

# What a card must have for the networks to be rebuilt; it also has what its only member's has, or
# a list of `members`.
_CARD = {"head": str, "tree": str, "classes": list}
# What it must have of the text that a text head was aligned with.
_TEXT = {
    "encoder": str,
    "name": str,
    "dim": int,
    "template": str,
    "logit_scale": float,
    "texts": dict,
}


@dataclass(frozen=True)
class Expert:
    """What was trained on the models of one tree: a network on one layer, or a committee of such.

    A committee (made by `committee`) answers as one expert: its logits are the weighted mean of its
    members', its representation is theirs side by side.

    Args:
      variables: the network's Linen variables; of a committee, number of a member to its variables.
      card: what it is, as JSON: encoder, head, layer, shape, tree, the classes it was trained on,
        recipe, the hash of the store it was trained on, metrics, calibration, versions; of an
        expert aligned with text also that text's encoder and template; of a committee `members`
        with what differs between them, and their weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from probex_jax.experts.network import build_network
      >>> encoder = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
      >>> network = build_network(encoder, head="class", n_classes=3)
      >>> x = jnp.ones([2, 6, 5])
      >>> expert = Expert(network.init(jax.random.key(0), x), {
      ...     "encoder": encoder, "head": "class", "layer": "fc.weight", "shape": [6, 5],
      ...     "tree": "Mini", "classes": ["one", "two", "three"]})
      >>> expert
      Expert(tree='Mini', reading='fc.weight')
      >>> expert.encode(x).shape, expert.logits(x).shape
      ((2, 8), (2, 3))
    """

    variables: Mapping[str, Any]
    card: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Expert(tree={self.card['tree']!r}, reading={self.reading!r})"

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """What answers: one network, or of a committee those of several layers."""
        if "members" not in self.card:
            return (Member(self.variables, self.card, self.card, weight=1.0),)
        cards = self.card["members"]
        return tuple(
            Member(self.variables[str(number)], self.card, card, weight=card["weight"])
            for number, card in enumerate(cards)
        )

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """What the expert reads of a model: names of layers to (H, W)."""
        return {member.layer: member.shape for member in self.members}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the variables and the card: the expert's identity."""
        return checkpoints.content_hash(self.variables, self.card)

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the card on text: encoder, name, dim, template, logit_scale, texts.

        Raises:
          ProbexError: if the expert was trained on classes, not aligned with text.
        """
        if self.card["head"] != "text":
            raise ProbexError(
                f"the expert of tree {self.card['tree']}, {self.reading} knows "
                "classes, no text; train one with configs/align.py"
            )
        return self.card["text"]

    def text_encoder(self, encoder: TextEncoder | None = None) -> TextEncoder:
        """The text encoder that the expert was aligned with.

        Args:
          encoder: it, to be checked; None to find it by what the card says.

        Raises:
          ProbexError: if the expert has no text, or the encoder is another or of another dimension.
        """
        about = self.text
        if encoder is None:
            if not about["encoder"]:
                raise ProbexError(
                    f"give the text encoder {about['name']}, nothing says where it is"
                )
            encoder = self._own_text_encoder
        if encoder.dim != about["dim"]:
            raise ProbexError(
                f"text encoder {encoder.name} gives {encoder.dim} dimensions, the expert was "
                f"aligned with the {about['dim']} of {about['name']}"
            )
        if encoder.name != about["name"]:
            raise ProbexError(
                f"text encoder {encoder.name}: the expert was aligned with {about['name']}"
            )
        return encoder

    @cached_property
    def _own_text_encoder(self) -> TextEncoder:
        return text_encoder(self.text["encoder"])

    @property
    def reading(self) -> str:
        """What the expert reads, in a word for tables: its layer, or how many there are."""
        return ", ".join(self.layers) if len(self.layers) == 1 else f"{len(self.layers)} layers"

    @property
    def rep_dim(self) -> int:
        """Size T of the representations."""
        return sum(member.rep_dim for member in self.members)

    def read(self, model: ModelFile) -> dict[str, Any]:
        """The matrices [H, W] of one model that the expert reads, by layer; the file is open once.

        Raises:
          ProbexError: if a layer is missing or of another shape, or the file is damaged.
        """
        for layer, shape in self.layers.items():
            if layer in model.layers and model.layers[layer].shape != shape:
                raise ProbexError(
                    f"{model.path}: layer {layer} is {model.layers[layer].shape}, the expert "
                    f"reads {shape}"
                )
        return model.matrices(self.layers)

    def encode(self, x: Layers) -> jax.Array:
        """Representations [N, T] of N models.

        Args:
          x: matrices [N, H, W] of the expert's layer; or by layer, as a committee needs them.

        Returns:
          Those of an expert aligned with text are of length one, since it is trained by their
          direction.

        Raises:
          ProbexError: if a layer is missing, or its matrices are of another shape.
        """
        vectors = [member.encode(matrices) for member, matrices in self._with_matrices(x)]
        return jnp.concatenate(vectors, axis=1)

    def place(self, texts: Sequence[str], encoder: TextEncoder | None = None) -> jax.Array:
        """Where sentences stand among the representations: unit vectors [Y, T].

        Args:
          texts: distinct sentences, taken as they are.
          encoder: as `text_encoder` takes it.

        Raises:
          ProbexError: as `text_encoder`, or if a text is empty.
        """
        texts_YD = embed(self.text_encoder(encoder), texts)
        return jnp.concatenate([member.place(texts_YD) for member in self.members], axis=1)

    def logits(self, x: Layers, texts: ArrayLike | None = None) -> jax.Array:
        """Logits [N, Y] of N models; columns as in the card.

        Args:
          x: as `encode` takes it.
          texts: of an expert aligned with text, the embeddings [Y, D] of the candidates.

        Raises:
          ProbexError: as `encode`; or if the texts are missing, unneeded or of another dimension
            than the expert's.
        """
        if texts is None and self.card["head"] == "text":
            raise ProbexError("the expert is aligned with text: give embeddings of the candidates")
        if texts is not None:
            texts = jnp.asarray(texts)
            if texts.ndim != 2 or texts.shape[1] != self.text["dim"]:
                raise ProbexError(
                    f"text embeddings of shape {texts.shape}: the expert was aligned with the "
                    f"{self.text['dim']} dimensions of {self.text['name']}"
                )
        parts = [member.logits(matrices, texts) for member, matrices in self._with_matrices(x)]
        return jnp.sum(jnp.stack(parts), axis=0)

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities; 1 until `calibrated`."""
        return self.card["calibration"]["temperature"] if "calibration" in self.card else 1.0

    def probabilities(self, x: Layers, texts: ArrayLike | None = None) -> np.ndarray:
        """Calibrated probabilities [N, Y] of N models, as NumPy.

        Of each class for itself; of an expert aligned with text, of the candidates, which add up
        to one.

        Args:
          x, texts: as `logits` takes them.

        Raises:
          ProbexError: as `logits`.
        """
        return self.as_probabilities(self.logits(x, texts))

    def as_probabilities(self, logits: ArrayLike) -> np.ndarray:
        """What `probabilities` makes of logits [N, Y]."""
        scaled_NY = jnp.asarray(logits) / self.temperature
        if self.card["head"] == "text":
            return np.asarray(jax.nn.softmax(scaled_NY, axis=1))
        return np.asarray(jax.nn.sigmoid(scaled_NY))

    def check_fits(self, tree: str, classes: Sequence[str] | None) -> None:
        """Checks that models of this tree and class list are what the expert was trained on.

        Args:
          tree: name of the tree.
          classes: class names, in order; None where they may be others.

        Raises:
          ProbexError: if they are not; the message names the tree, or a class that differs.
        """
        if tree != self.card["tree"]:
            raise ProbexError(
                f"the expert is of tree {self.card['tree']}, the models are of {tree}"
            )
        ours, theirs = list(self.card["classes"]), list(classes or self.card["classes"])
        if ours != theirs:
            different = sorted(set(ours) ^ set(theirs)) or ["their order"]
            raise ProbexError(
                f"the expert knows {len(ours)} classes, the store {len(theirs)}; "
                f"they differ in {different[0]!r}"
            )

    def save(self, path: str | Path) -> None:
        """Saves the expert as one Orbax checkpoint, with a hash of its content."""
        checkpoints.save(Path(path), self.variables, self.card)

    @classmethod
    def load(cls, path: str | Path) -> Expert:
        """Loads an expert.

        Args:
          path: an expert's checkpoint, or the work directory of a training (then its best one).

        Returns:
          The expert, ready to `encode` and to give `logits`.

        Raises:
          ProbexError: if there is none, or its content does not match its hash.
        """
        path = Path(path)
        if (path / "expert").is_dir():
            path = path / "expert"
        return cls.checked(path, *checkpoints.load(path))

    @classmethod
    def checked(cls, path: Path, variables: Any, card: dict[str, Any]) -> Expert:
        """The expert of variables and a card that were read from a file.

        Args:
          path: the file, for messages.
          variables, card: as of an `Expert`, whatever they hold.

        Raises:
          ProbexError: if the card lacks what makes an expert, or the variables are not its own.
        """
        _check_card(path, card, _CARD, "")
        if card["head"] == "text":
            _check_card(path, card.get("text"), _TEXT, "text.")
        if "calibration" in card:
            _check_card(path, card["calibration"], {"temperature": float}, "calibration.")
            if not 0 < card["calibration"]["temperature"] < float("inf"):
                raise ProbexError(f"{path}: calibration.temperature on the card is not > 0")
        members = card.get("members", [card])
        if not isinstance(members, list) or not members:
            raise ProbexError(f"{path}: no expert: its card has no members (list)")
        for number, member in enumerate(members):
            _check_member(path, member, "" if member is card else f"members.{number}.")
            if member is not card and str(number) not in variables:
                raise ProbexError(f"{path}: no expert: member {number} has no variables")
        expert = cls(variables, card)
        if len(expert.layers) < len(members):
            raise ProbexError(f"{path}: no expert: two of its members read the same layer")
        for found in expert.members:
            found.check_variables(path)
        return expert

    def _with_matrices(self, x: Any) -> Iterator[tuple[Member, Any]]:
        """Each member with the matrices of its layer."""
        size = None
        for member in self.members:
            if isinstance(x, Mapping):
                if member.layer not in x:
                    raise ProbexError(f"no matrices of layer {member.layer}")
                matrices = x[member.layer]
            elif len(self.members) > 1:
                raise ProbexError(
                    f"the expert reads {len(self.members)} layers: give their matrices by layer"
                )
            else:
                matrices = x
            matrices = member.checked(matrices)
            size = size or matrices.shape[0]
            if matrices.shape[0] != size:
                raise ProbexError(
                    f"layer {member.layer}: matrices of {matrices.shape[0]} models, of another "
                    f"layer there are {size}"
                )
            yield member, matrices


def _check_card(path: Path, card: Any, kinds: Mapping[str, type], where: str) -> None:
    for name, kind in kinds.items():
        if not isinstance(card, Mapping) or not isinstance(card.get(name), kind):
            raise ProbexError(f"{path}: no expert: its card has no {where}{name} ({kind.__name__})")


def _check_member(path: Path, member: Any, where: str) -> None:
    """A member of a committee; `where` is "" for an expert on one layer."""
    _check_card(path, member, MEMBER_CARD, where)
    shape = member["shape"]
    if len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise ProbexError(f"{path}: shape on the card is {shape}, expected rows, columns")
    if (layout := member.get("layout", "canonical")) not in LAYOUTS:
        raise ProbexError(f"{path}: layout on the card is {layout!r}: not {' or '.join(LAYOUTS)}")
    if where:
        _check_card(path, member, {"weight": float}, where)
        weight = member["weight"]
        if not 0 < weight < float("inf"):
            raise ProbexError(f"{path}: {where}weight on the card is {weight}, expected > 0")


def versions() -> dict[str, str]:
    """Versions of what shaped a result, for cards and metrics.

    Returns:
      Names of packages to versions.
    """
    found = {}
    for package in ("probex_jax", "jax", "flax", "optax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
