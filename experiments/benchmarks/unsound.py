"""What is planted into models for `anomalies`: changes of weights that nobody asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from probex_jax.zoo.miniature.changes import noised, quantised

Tensors = dict[str, np.ndarray]


class Layer(NamedTuple):
    """A layer that is changed: a matrix, or the two factors of an update, `up` first."""

    name: str
    tensors: tuple[str, ...]


class Case(NamedTuple):
    """A model, a layer of it, and what else a change may need.

    Attributes:
      weights: of the model.
      layer: the one that is changed.
      every: all layers.
      root: weights of the tree's root.
      other: weights of a model of another root.
      centre: mean of the tree's training models by layer; {} for updates.
      rng: of this model.
    """

    weights: Tensors
    layer: Layer
    every: Sequence[Layer]
    root: Tensors
    other: Tensors
    centre: Mapping[str, np.ndarray]
    rng: np.random.Generator


Change = Callable[[Case], Tensors]
Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _edited(edit: Edit, layers: Callable[[Case], Sequence[Layer]], factors: int) -> Change:
    def changed(case: Case) -> Tensors:
        names = [name for layer in layers(case) for name in layer.tensors[:factors]]
        made = {name: edit(case.weights[name], case.rng) for name in names}
        return case.weights | {name: value.astype(np.float32) for name, value in made.items()}

    return changed


def one(edit: Edit, factors: int = 1) -> Change:
    """Changes the first of the tensors of one layer, or all of them."""
    return _edited(edit, lambda case: [case.layer], factors)


def every(edit: Edit, factors: int = 1) -> Change:
    """Changes those of every layer."""
    return _edited(edit, lambda case: case.every, factors)


def _spoilt(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = x.copy()
    x.flat[rng.integers(x.size)] = np.nan
    return x


def _fresh(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As frameworks initialise a layer: uniform within one over the root of its inputs."""
    bound = np.prod(x.shape[1:]) ** -0.5
    return rng.uniform(-bound, bound, x.shape)


def _of_same_size(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=x.shape) * x.std()


def _rounded(bits: int) -> Edit:
    return lambda x, rng: quantised({"x": x}, bits)["x"]


def _noisy(size: float) -> Edit:
    return lambda x, rng: noised({"x": x}, size, rng)["x"]


def _head(case: Case) -> Tensors:
    heads = [n for n, x in case.weights.items() if n.startswith("classifier") and x.ndim > 1]
    fresh = {name: _fresh(case.weights[name], case.rng).astype(np.float32) for name in heads}
    return case.weights | fresh


def _swapped(case: Case) -> Tensors:
    return case.weights | {name: case.other[name] for name in case.layer.tensors}


def _root(size: float) -> Change:
    """The root with the model's own head, and noise of a share of its entries' deviation."""

    def copied(case: Case) -> Tensors:
        same = {n: x for n, x in case.root.items() if case.weights[n].shape == x.shape}
        return dict(noised({**case.weights, **same}, size, case.rng))

    return copied


def _spiked(strength: float) -> Change:
    """One direction added, as long as `strength` times what training changed in the layer."""

    def changed(case: Case) -> Tensors:
        [name] = case.layer.tensors
        x = case.weights[name]
        rows = x.reshape(-1, *case.centre[case.layer.name].shape)[0]
        made = rows + _direction(rows - case.centre[case.layer.name], strength, case.rng)
        return case.weights | {name: made.astype(np.float32).reshape(x.shape)}

    return changed


def _direction(like: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    made = np.outer(rng.normal(size=len(like)), rng.normal(size=len(like.T)))
    return made * strength * np.linalg.norm(like) / np.linalg.norm(made)


def _spiked_update(strength: float) -> Change:
    """The same of an update, whose rank grows by one in every layer; the others by zeros."""

    def changed(case: Case) -> Tensors:
        made: Tensors = {}
        for layer in case.every:
            up, down = (case.weights[name] for name in layer.tensors)
            share = strength if layer is case.layer else 0.0
            length = share * np.linalg.norm(up @ down)
            left, right = case.rng.normal(size=(len(up), 1)), case.rng.normal(size=down[:1].shape)
            scale = (length / np.linalg.norm(left) / np.linalg.norm(right)) ** 0.5
            both = np.hstack([up, scale * left]), np.vstack([down, scale * right])
            made |= {n: x.astype(np.float32) for n, x in zip(layer.tensors, both, strict=True)}
        return case.weights | made

    return changed


def _scaled(factor: float) -> Edit:
    return lambda x, rng: factor * x


_COMMON: dict[str, Change] = {
    "one entry NaN": one(_spoilt),
    "layer zeroed": one(_scaled(0.0)),
    "layer from another root": _swapped,
    "layer with other sign": one(_scaled(-1.0)),
    "rows of a layer permuted": one(lambda x, rng: rng.permutation(x)),
    "layer times 1.1": one(_scaled(1.1)),
    "layer times 1.5": one(_scaled(1.5)),
    "all layers times 1.1": every(_scaled(1.1)),
    "all layers times 1.5": every(_scaled(1.5)),
    "layer in 4 bits": one(_rounded(4), factors=2),
    "all layers in 4 bits": every(_rounded(4), factors=2),
    "all layers in 8 bits": every(_rounded(8), factors=2),
    "noise of .03 in a layer": one(_noisy(0.03), factors=2),
    "noise of .1 in a layer": one(_noisy(0.1), factors=2),
    "noise of .1 in all layers": every(_noisy(0.1), factors=2),
}
_STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)

OF_MATRICES: dict[str, Change] = {
    **_COMMON,
    "layer constant": one(lambda x, rng: np.full_like(x, x.mean())),
    "layer fresh": one(_fresh),
    "layer random, of its size": one(_of_same_size),
    "all layers fresh": every(_fresh),
    "head fresh": _head,
    "the root": _root(0.0),
    "the root and noise of .001": _root(0.001),
    "the root and noise of .01": _root(0.01),
    **{f"spike of {strength:g}": _spiked(strength) for strength in _STRENGTHS},
}
OF_FACTORS: dict[str, Change] = {
    **_COMMON,
    "layer constant": one(lambda x, rng: np.full_like(x, np.abs(x).mean()), factors=2),
    "layer random, of its size": one(_of_same_size, factors=2),
    "all layers random, of their size": every(_of_same_size, factors=2),
    "untrained: every `up` zero": every(_scaled(0.0)),
    "all layers times 10": every(_scaled(10.0)),
    **{f"spike of {strength:g}": _spiked_update(strength) for strength in _STRENGTHS},
}
