"""A trained Tree Expert: what it is, what it answers, and how it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.network import Network, build_network
from probex_jax.experts.training import logits, representations
from probex_jax.language import TextEncoder, embed, text_encoder
from probex_jax.matrices import LowRank

# What a card must have for the network to be rebuilt.
_CARD = {"encoder": dict, "head": str, "layer": str, "shape": list, "tree": str, "classes": list}
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
    """A network trained on one layer of one tree, with its card.

    Args:
      variables: the network's Linen variables.
      card: what it is, as JSON: encoder, head, layer, shape, tree, the classes it was trained on,
        recipe, the hash of the store it was trained on, metrics, versions; of an expert aligned
        with text also that text's encoder and template.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from probex_jax.experts.network import build_network
      >>> encoder = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
      >>> network = build_network(encoder, head="class", n_classes=3)
      >>> x = jnp.ones([2, 6, 5])
      >>> expert = Expert(network.init(jax.random.key(0), x), {
      ...     "encoder": encoder, "head": "class", "layer": "fc.weight", "shape": [6, 5],
      ...     "tree": "Mini", "classes": ["one", "two", "three"]})
      >>> expert.encode(x).shape, expert.logits(x).shape
      ((2, 8), (2, 3))
    """

    variables: Mapping[str, Any]
    card: Mapping[str, Any]

    @cached_property
    def network(self) -> Network:
        """The Linen module, rebuilt from the card."""
        return build_network(
            self.card["encoder"],
            self.card["head"],
            len(self.card["classes"]),
            logit_scale=self.card["text"]["logit_scale"] if self.card["head"] == "text" else 1.0,
            normalise=self.card.get("normalise", "none"),
        )

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
                f"the expert of tree {self.card['tree']}, layer {self.card['layer']} knows "
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

    def encode(self, x: ArrayLike | LowRank) -> jax.Array:
        """Representations [N, T] of matrices [N, H, W] of the expert's layer.

        Raises:
          ProbexError: if the matrices are of another shape than the expert's layer.
        """
        return _encode(self.network, self.variables, self._checked(x))

    def place(self, texts: Sequence[str], encoder: TextEncoder | None = None) -> jax.Array:
        """Where sentences stand among the representations: unit vectors [Y, T].

        Args:
          texts: distinct sentences, taken as they are.
          encoder: as `text_encoder` takes it.

        Raises:
          ProbexError: as `text_encoder`, or if a text is empty.
        """
        texts_YD = embed(self.text_encoder(encoder), texts)
        return _place(self.network, self.variables, texts_YD)

    def logits(self, x: ArrayLike | LowRank, texts: ArrayLike | None = None) -> jax.Array:
        """Logits [N, Y] of matrices [N, H, W] of the expert's layer; columns as in the card.

        Args:
          x: the matrices.
          texts: of an expert aligned with text, the embeddings [Y, D] of the candidates.

        Raises:
          ProbexError: if the matrices are of another shape than the expert's layer, or the texts
            are missing, unneeded or of another dimension than the expert's.
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
        return _logits(self.network, self.variables, self._checked(x), texts)

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
        variables, card = checkpoints.load(path)
        for name, kind in _CARD.items():
            if not isinstance(card.get(name), kind):
                raise ProbexError(f"{path}: no expert: its card has no {name} ({kind.__name__})")
        if card["head"] == "text":
            text = card["text"] if isinstance(card.get("text"), dict) else {}
            missing = [name for name, kind in _TEXT.items() if not isinstance(text.get(name), kind)]
            if missing:
                raise ProbexError(f"{path}: no expert: its card has no text.{missing[0]}")
        if len(card["shape"]) != 2 or not all(type(n) is int and n > 0 for n in card["shape"]):
            raise ProbexError(
                f"{path}: shape on the card is {card['shape']}, expected rows, columns"
            )
        expert = cls(variables, card)
        expert._check_parameters(path)
        return expert

    def _check_parameters(self, path: Path) -> None:
        x = jax.ShapeDtypeStruct((1, *self.card["shape"]), jnp.float32)
        texts = None
        if self.card["head"] == "text":
            texts = jax.ShapeDtypeStruct((1, self.text["dim"]), jnp.float32)
        expected = jax.eval_shape(self.network.init, jax.random.key(0), x, texts)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected)
        if jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), self.variables) != shapes:
            raise ProbexError(f"{path}: the parameters do not fit the encoder on the expert's card")

    def _checked(self, x: Any) -> Any:
        if not isinstance(x, LowRank):
            x = jnp.asarray(x)
        if x.shape[:1] == (0,):
            raise ProbexError("no matrices: expected one or more")
        if tuple(x.shape[1:]) != tuple(self.card["shape"]):
            raise ProbexError(
                f"the expert of layer {self.card['layer']} reads matrices of "
                f"{self.card['shape'][0]}x{self.card['shape'][1]}, got shape {tuple(x.shape)}"
            )
        return x


@partial(jax.jit, static_argnames="network")
def _encode(network: Network, variables: Mapping[str, Any], x: Any) -> jax.Array:
    return representations(network, variables, x)


@partial(jax.jit, static_argnames="network")
def _place(network: Network, variables: Mapping[str, Any], texts_YD: Any) -> Any:
    return network.apply(variables, texts_YD, method="place")


@partial(jax.jit, static_argnames="network")
def _logits(network: Network, variables: Mapping[str, Any], x: Any, texts_YD: Any) -> jax.Array:
    return logits(network, variables, x, texts_YD)


def versions() -> dict[str, str]:
    """Versions of what shaped a result, for cards and metrics."""
    found = {}
    for package in ("probex_jax", "jax", "flax", "optax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def probabilities(logits_NY: Any) -> np.ndarray:
    """Sigmoid of logits, as NumPy."""
    return np.asarray(jax.nn.sigmoid(jnp.asarray(logits_NY)))
