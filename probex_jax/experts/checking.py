"""Whether arrays can be trained on, checked once, before anything is computed from them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts.network import Network
from probex_jax.experts.objective import Split
from probex_jax.heads import ClassHead, TextHead
from probex_jax.matrices import Centred, LowRank


def check_splits(network: Network, splits: Mapping[str, Split]) -> None:
    """Checks all of some splits but whether their matrices are finite (`check_finite`).

    Args:
      network: what is to be trained on them.
      splits: name to split; "train" first, whose shapes the others must have.

    Raises:
      ProbexError: naming the split, the array, its shape, and what was expected.
    """
    train = splits["train"]
    for name, split in splits.items():
        _check_matrices(f"{name}: x", split.x)
        if split.x.shape[1:] != train.x.shape[1:]:
            raise ProbexError(
                f"{name}: x has shape {split.x.shape}, expected matrices of "
                f"{list(train.x.shape[1:])} as in train"
            )
        if isinstance(network.head, TextHead):
            _check_texts(name, split, train)
            _check_indices(name, split)
        else:
            _check_classes(name, split, _n_outputs(network) or np.shape(train.y)[-1])
        _check_weight(name, split)


def check_finite(splits: Mapping[str, Split]) -> None:
    """Checks that the matrices of some splits are finite, in one pass on the devices they are on.

    Args:
      splits: name to split, x [..., N, H, W].

    Raises:
      ProbexError: naming the split and the shape of x.
    """
    finite = _finite({name: split.x for name, split in splits.items()})
    for name, is_finite in finite.items():
        if not is_finite:
            x = splits[name].x
            raise ProbexError(
                f"{name}: x of shape {x.shape[-3:]} holds values that are NaN or infinite in "
                f"{x.dtype}, expected finite ones"
            )


def check_together(layers: int, splits: Mapping[str, Split]) -> None:
    """Checks that x [L, N, H, W] of some splits is of so many layers, and y of as many models.

    Raises:
      ProbexError: naming the split and both shapes.
    """
    for name, split in splits.items():
        shape, y_shape = split.x.shape, np.shape(split.y)
        if len(shape) != 4 or shape[0] != layers or shape[1:2] != y_shape[:1]:
            raise ProbexError(
                f"{name}: x of shape {shape} and y of shape {y_shape}, "
                f"expected [{layers}, N, H, W] and [N, ...] of the same N"
            )


@jax.jit
def _finite(matrices: Any) -> Any:
    return {
        name: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x)]).all()
        for name, x in matrices.items()
    }


def _check_matrices(what: str, x: Any) -> None:
    leaves: list[Any] = jax.tree.leaves(x)
    if not isinstance(x, np.ndarray | jax.Array | LowRank | Centred):
        raise ProbexError(f"{what} is a {type(x).__name__}, expected an array [N, H, W]")
    if x.ndim != 3 or 0 in x.shape:
        raise ProbexError(f"{what} has shape {x.shape}, expected [N, H, W], none of them 0")
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ProbexError(f"{what} of shape {x.shape} is {leaf.dtype}, expected floats")
    factors = x.factors if isinstance(x, Centred) else x
    if isinstance(factors, LowRank):
        up, down = factors.up.shape, factors.down.shape
        if len(down) != 3 or (up[0], up[2]) != (down[0], down[1]):
            raise ProbexError(f"{what} has factors {up} and {down}, expected [N, H, R], [N, R, W]")
    if isinstance(x, Centred) and x.centre.shape != x.shape[1:]:
        raise ProbexError(
            f"{what} of shape {x.shape} has a centre of {x.centre.shape}, expected [H, W]"
        )


def _check_texts(name: str, split: Split, train: Split) -> None:
    if split.texts is None:
        raise ProbexError(f"{name}: texts are missing, expected [Y, D] for a text head")
    texts_YD, dims = np.asarray(split.texts), np.asarray(train.texts).shape
    if texts_YD.ndim != 2 or 0 in texts_YD.shape or texts_YD.shape[1:] != dims[1:]:
        of_train = "" if name == "train" else f" and D as in train, {dims[-1]}"
        raise ProbexError(
            f"{name}: texts have shape {texts_YD.shape}, expected [Y, D], none 0{of_train}"
        )
    if not jnp.issubdtype(texts_YD.dtype, jnp.floating) or not np.isfinite(texts_YD).all():
        raise ProbexError(
            f"{name}: texts of shape {texts_YD.shape} ({texts_YD.dtype}) are not all finite floats"
        )


def _check_indices(name: str, split: Split) -> None:
    y, n_models, n_texts = np.asarray(split.y), split.x.shape[0], len(np.asarray(split.texts))
    if y.shape != (n_models,) or not np.issubdtype(y.dtype, np.integer):
        raise ProbexError(
            f"{name}: y has shape {y.shape} of {y.dtype}, expected one whole number for each "
            f"model of x {split.x.shape}"
        )
    if y.min() < 0 or y.max() >= n_texts:
        raise ProbexError(
            f"{name}: y of shape {y.shape} goes from {y.min()} to {y.max()}, expected places in "
            f"texts, 0 to {n_texts - 1}"
        )


def _check_classes(name: str, split: Split, n_outputs: int) -> None:
    y, expected = np.asarray(split.y), (split.x.shape[0], n_outputs)
    if split.texts is not None:
        raise ProbexError(f"{name}: texts are given, expected None for a network without text head")
    if y.shape != expected or not n_outputs:
        raise ProbexError(
            f"{name}: y has shape {y.shape}, expected {expected}: the models of x "
            f"{split.x.shape} by the classes of the network"
        )
    is_number = np.issubdtype(y.dtype, np.number) or y.dtype == bool
    if not (is_number and np.isin(y, (0, 1)).all()):
        raise ProbexError(
            f"{name}: y of shape {y.shape} ({y.dtype}) holds other values than 0 and 1"
        )


def _check_weight(name: str, split: Split) -> None:
    if split.weight is None:
        return
    if name == "train":
        raise ProbexError("train: weight is given, expected None: all training models count")
    weight, n_models = np.asarray(split.weight), split.x.shape[0]
    if weight.shape != (n_models,) or not np.isin(weight, (0, 1)).all() or not weight.any():
        raise ProbexError(
            f"{name}: weight of shape {weight.shape}, expected 0 or 1 for each of {n_models} "
            "models, not all of them 0"
        )


def _n_outputs(network: Network) -> int | None:
    """The classes that a network tells apart, where that is known before it reads a model."""
    if isinstance(network.head, ClassHead):
        return network.head.n_classes
    return getattr(network.encoder, "rep_dim", None) if network.head is None else None
