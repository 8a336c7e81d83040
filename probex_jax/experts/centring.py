"""Centre and scale of a tree: what its models have in common, taken off before an expert reads.

Both come from the training split alone, and are variables of the expert (collection `tree`).
"""

import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from probex_jax.errors import ProbexError
from probex_jax.experts.devices import ONE, Devices
from probex_jax.layer_store import LayerStore
from probex_jax.layer_store.moments import Moments
from probex_jax.matrices import LowRank, Matrices, centred

Tree = Mapping[str, np.ndarray]


# Spread of a layer over the models, in units of that of its entries, below which it is rounding.
_FROZEN = 1e-7


class FrozenLayer(ProbexError):
    """A layer that is the same in all training models: nothing can be told from it."""


def tree_variables(store: LayerStore, layer: str, normalise: str, devices: Devices = ONE) -> Tree:
    """What a network of this `normalise` has in its collection `tree`.

    Args:
      store: the tree's matrices; the training ones are streamed.
      layer: one of its layers.
      normalise: "none", "scale" or "centre".
      devices: where it is trained on; of several processes each reads its share.

    Returns:
      "scale" []: the standard deviation of the training matrices, of "centre" that of what is left
      of them. "centre" [H, W]: their mean; or, of a layer that is kept as factors, where that is
      smaller, "centre_up" [H, R] and "centre_down" [R, W]. All float32.

    Raises:
      FrozenLayer: if the training matrices are all the same.
    """
    if normalise == "none":
        return {}
    moments = _moments(store, layer, devices)
    scale = moments.centred_std if normalise == "centre" else moments.std
    with np.errstate(over="ignore", under="ignore"):
        tree: dict[str, Any] = {"scale": np.float32(scale)}
        divides = tree["scale"] > 0 and np.isfinite(1 / tree["scale"])
    if not divides or moments.centred_std <= _FROZEN * moments.std:
        raise FrozenLayer(f"{store.path}: {layer}: the training matrices are all the same")
    if normalise == "centre":
        tree |= _centre(moments.mean, factors=layer in store.ranks)
    return {name: np.asarray(value, np.float32) for name, value in tree.items()}


def _moments(store: LayerStore, layer: str, devices: Devices) -> Moments:
    n_models = len(store.split("train"))
    if devices.processes == 1 or n_models < devices.processes:
        return store.moments(layer, "train")
    shares = np.array_split(np.arange(n_models), devices.processes)
    ours = store.moments(layer, "train", shares[jax.process_index()])
    # As bits, since JAX would make float32 of it.
    packed = np.concatenate([[ours.n_models, ours.squares], ours.mean.ravel()]).view(np.uint32)
    gathered = np.asarray(multihost_utils.process_allgather(packed))
    parts = np.ascontiguousarray(gathered, np.uint32).view(np.float64)
    shape = ours.mean.shape
    each = [Moments(int(part[0]), part[2:].reshape(shape), float(part[1])) for part in parts]
    return reduce(operator.add, each)


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
