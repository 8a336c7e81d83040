"""Centre and scale of a tree: what its models have in common, taken off before an encoder reads.

Both come from training models alone, and are variables of the network (collection `tree`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.fitting.moments import Moments
from probex_jax.matrices import LowRank, Matrices, centred

Tree = Mapping[str, np.ndarray]

# Spread of a layer over the models, in units of that of its entries, below which it is rounding.
_FROZEN = 1e-7


class FrozenLayer(ProbexError):
    """A layer that is the same in all training models: nothing can be told from it."""


def tree_of(found: Moments, normalise: str, *, factors: bool, where: str = "train") -> Tree:
    """What a network of this `normalise` has in its collection `tree`.

    Args:
      found: of the training matrices.
      normalise: "none", "scale" or "centre".
      factors: whether the matrices are kept as factors.
      where: what they are, for an error.

    Returns:
      "scale" []: the standard deviation of the training matrices, of "centre" that of what is left
      of them. "centre" [H, W]: their mean; or, of factors, where that is smaller, "centre_up"
      [H, R] and "centre_down" [R, W]. All float32.

    Raises:
      FrozenLayer: if the training matrices are all the same.
    """
    if normalise == "none":
        return {}
    scale = found.centred_std if normalise == "centre" else found.std
    with np.errstate(over="ignore", under="ignore"):
        tree: dict[str, Any] = {"scale": np.float32(scale)}
        divides = tree["scale"] > 0 and np.isfinite(1 / tree["scale"])
    if not divides or found.centred_std <= _FROZEN * found.std:
        raise FrozenLayer(f"{where}: the training matrices are all the same")
    if normalise == "centre":
        tree |= _centre(found.mean, factors=factors)
    return {name: np.asarray(value, np.float32) for name, value in tree.items()}


def normalised(x: Matrices, tree: Tree) -> Any:
    """[N, H, W] matrices as the network of an expert with these variables reads them.

    Example:
      >>> tree = {"scale": np.float32(2.0), "centre": np.ones([2, 2], np.float32)}
      >>> normalised(np.full([1, 2, 2], 5.0, np.float32), tree).tolist()
      [[[2.0, 2.0], [2.0, 2.0]]]
    """
    if "centre_up" in tree:
        x = centred(x, LowRank(tree["centre_up"], tree["centre_down"]))
    elif "centre" in tree:
        x = centred(x, tree["centre"])
    return x / tree["scale"] if tree else x


def is_centred(tree: Tree) -> bool:
    """Whether a centre is subtracted, after which factors are none."""
    return "centre" in tree or "centre_up" in tree


def centre_rank(tree: Tree) -> int:
    """Rank of a centre that is kept as factors; 0 for another, or none."""
    return tree["centre_up"].shape[1] if "centre_up" in tree else 0


def _centre(mean: np.ndarray, *, factors: bool) -> dict[str, np.ndarray]:
    if factors:
        up, values, down = np.linalg.svd(mean, full_matrices=False)
        # What float32 cannot hold of the mean is no part of it.
        kept = values > values[0] * max(mean.shape) * np.finfo(np.float32).eps
        rank = int(kept.sum())
        if 0 < rank * sum(mean.shape) < mean.size:
            return {"centre_up": up[:, kept] * values[kept], "centre_down": down[kept]}
    return {"centre": mean}
