"""The models of one split as arrays, and whether they can be trained on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.fitting.task import Task
from probex_jax.matrices import Centred, LowRank, Matrices


class Split(NamedTuple):
    """The models of one split.

    Args:
      x: [N, H, W] float, one layer's matrices; or `LowRank` or `Centred` of that shape.
      y: targets, as the task takes them: [N, Y] of zeros and ones, [N] int or [N] float.
      texts: [Y, D] float, embeddings of the candidates of the task `Texts`; else None.
      weight: [N] float, 0 for models that only fill up a split, else 1; None where all count.

    Example:
      >>> Split(np.ones([5, 3, 2], np.float32), np.array([0, 1, 1, 0, 1])).x.shape
      (5, 3, 2)
    """

    x: Matrices
    y: Any
    texts: Any = None
    weight: Any = None


def check_splits(task: Task, n_outputs: int | None, splits: Mapping[str, Split]) -> None:
    """Checks all of some splits but whether their matrices are finite (`check_finite`).

    Args:
      task: what is to be told.
      n_outputs: logits of the network; None where they are the candidates in `Split.texts`.
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
        if n_outputs is None:
            _check_texts(name, split, train)
        elif split.texts is not None:
            raise ProbexError(
                f"{name}: texts are given, expected None for a network without a text head"
            )
        n_models = split.x.shape[0]
        n_logits = len(split.texts) if n_outputs is None else n_outputs
        task.check(f"{name}: y", split.y, n_models, n_logits)
        _check_weight(name, split)


def check_finite(splits: Mapping[str, Split]) -> None:
    """Checks that the matrices of some splits are finite, in one pass on the devices they are on.

    Args:
      splits: name to split, x [..., N, H, W].

    Raises:
      ProbexError: naming the split and the shape of x.
    """
    with np.errstate(over="ignore"):  # of float64 that JAX makes float32 of
        finite = _finite({name: split.x for name, split in splits.items()})
    for name, is_finite in finite.items():
        if not is_finite:
            x = splits[name].x
            raise ProbexError(
                f"{name}: x of shape {x.shape[-3:]} holds values that are NaN or infinite in "
                f"{x.dtype}, expected finite ones"
            )


@jax.jit
def _finite(matrices: Any) -> Any:
    return {
        name: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x)]).all()
        for name, x in matrices.items()
    }


def _check_matrices(what: str, x: Any) -> None:
    if not isinstance(x, np.ndarray | jax.Array | LowRank | Centred):
        raise ProbexError(f"{what} is a {type(x).__name__}, expected an array [N, H, W]")
    if x.ndim != 3 or 0 in x.shape:
        raise ProbexError(f"{what} has shape {x.shape}, expected [N, H, W], none of them 0")
    for leaf in jax.tree.leaves(x):
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
