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
from probex_jax.experts.training import logits
from probex_jax.matrices import LowRank

# What a card must have for the network to be rebuilt.
_CARD = {"encoder": dict, "head": str, "layer": str, "shape": list, "tree": str, "classes": list}


@dataclass(frozen=True)
class Expert:
    """A network trained on one layer of one tree, with its card.

    Args:
      variables: the network's Linen variables.
      card: what it is, as JSON: encoder, head, layer, shape, tree, classes, recipe, the hash of
        the store it was trained on, metrics, versions.

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
        return build_network(self.card["encoder"], self.card["head"], len(self.card["classes"]))

    def encode(self, x: ArrayLike | LowRank) -> jax.Array:
        """Representations [N, T] of matrices [N, H, W] of the expert's layer.

        Raises:
          ProbexError: if the matrices are of another shape than the expert's layer.
        """
        return _encode(self.network, self.variables, self._checked(x))

    def logits(self, x: ArrayLike | LowRank) -> jax.Array:
        """Logits [N, Y] of matrices [N, H, W] of the expert's layer; columns as in the card.

        Raises:
          ProbexError: if the matrices are of another shape than the expert's layer.
        """
        return _logits(self.network, self.variables["params"], self._checked(x))

    def check_fits(self, tree: str, classes: Sequence[str]) -> None:
        """Checks that models of this tree and class list are what the expert was trained on.

        Args:
          tree: name of the tree.
          classes: class names, in order.

        Raises:
          ProbexError: if they are not; the message names the tree, or a class that differs.
        """
        if tree != self.card["tree"]:
            raise ProbexError(
                f"the expert is of tree {self.card['tree']}, the models are of {tree}"
            )
        ours, theirs = list(self.card["classes"]), list(classes)
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
        if len(card["shape"]) != 2 or not all(type(n) is int and n > 0 for n in card["shape"]):
            raise ProbexError(
                f"{path}: shape on the card is {card['shape']}, expected rows, columns"
            )
        expert = cls(variables, card)
        expert._check_parameters(path)
        return expert

    def _check_parameters(self, path: Path) -> None:
        x = jax.ShapeDtypeStruct((1, *self.card["shape"]), jnp.float32)
        expected = jax.eval_shape(self.network.init, jax.random.key(0), x)
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
def _encode(network: Network, variables: Mapping[str, Any], x: Any) -> Any:
    return network.apply(variables, x, method="encode")


@partial(jax.jit, static_argnames="network")
def _logits(network: Network, params: Any, x: Any) -> jax.Array:
    return logits(network, params, x)


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
