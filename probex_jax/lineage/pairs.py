"""Which layer of one model is which of another that names its layers otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probex_jax.lineage.sketch import Sketch, SketchedLayer, sketch
from probex_jax.model_files import ModelFile

# Layers of one shape that are assigned by their values; of more, time and memory would be too much.
_MOST_ASSIGNED = 2048

# Mean distance of samples, of at most 2, below which the natural order is right without a search;
# rounding to bfloat16 makes 1e-5.
_ALIKE = 1e-4
# An assignment must be this many times nearer than the natural order; chance alone makes it nearer.
_NEARER = 2.0


def pair_layers(one: ModelFile, other: ModelFile, *, by_name: bool = True) -> dict[str, str]:
    """Pairs the layers of two models.

    Layers of one name and shape belong together. Of the others, those of one shape are paired in
    the natural order of their names, unless samples of their values are much nearer in another
    order. Values are read only if names differ.

    Args:
      one: a model, open.
      other: another one.
      by_name: False to pair by values alone, whatever the names.

    Returns:
      Name in `one` to name in `other`, of all layers that have a partner.

    Raises:
      ProbexError: as `sketch`, if values are read.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> a_HW, b_HW = np.random.default_rng(0).normal(size=(2, 16, 16)).astype("f4")
      >>> one = open_params({"fc.0.weight": a_HW, "fc.1.weight": b_HW})
      >>> pair_layers(one, open_params({"x": b_HW, "y": a_HW}))
      {'fc.0.weight': 'y', 'fc.1.weight': 'x'}
    """
    theirs = other.all_layers
    if by_name and one.all_layers.keys() == theirs.keys():
        return {
            name: name
            for name, layer in one.all_layers.items()
            if layer.shape == theirs[name].shape and layer.is_update == theirs[name].is_update
        }
    sketches = sketch(one, every_layer=True), sketch(other, every_layer=True)
    return pair_sketched(*sketches, by_name=by_name)


def pair_sketched(one: Sketch, other: Sketch, *, by_name: bool = True) -> dict[str, str]:
    """Pairs the sampled layers of two models, as `pair_layers` does all of them."""
    pairs: dict[str, str] = {}
    groups = _by_shape(one), _by_shape(other)
    for shape in (shape for shape in groups[0] if shape in groups[1]):
        ours, theirs = (group[shape] for group in groups)
        if by_name:
            same = {layer.name for layer in ours} & {layer.name for layer in theirs}
            pairs |= {layer.name: layer.name for layer in ours if layer.name in same}
            ours = [layer for layer in ours if layer.name not in same]
            theirs = [layer for layer in theirs if layer.name not in same]
        if ours and theirs:
            pairs |= _paired(one, ours, other, theirs)
    return pairs


def _by_shape(model: Sketch) -> dict[tuple[int, int, bool], list[SketchedLayer]]:
    groups: dict[tuple[int, int, bool], list[SketchedLayer]] = {}
    for layer in model.layers:
        groups.setdefault((*layer.shape, layer.is_update), []).append(layer)
    return groups


def _paired(
    one: Sketch, ours: Sequence[SketchedLayer], other: Sketch, theirs: Sequence[SketchedLayer]
) -> dict[str, str]:
    """Pairs layers of one shape."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    count = min(len(ours), len(theirs))
    order = np.arange(count), np.arange(count)
    if 1 < max(len(ours), len(theirs)) <= _MOST_ASSIGNED:
        apart_NM = _apart(_samples(one, ours), _samples(other, theirs))
        natural = apart_NM[order].mean()
        if len(ours) != len(theirs) or natural > _ALIKE:
            found = linear_sum_assignment(apart_NM)
            if apart_NM[found].mean() * _NEARER < natural:
                order = found
    return {ours[int(at)].name: theirs[int(to)].name for at, to in zip(*order, strict=True)}


def _samples(model: Sketch, layers: Sequence[SketchedLayer]) -> np.ndarray:
    """The entries of layers of one shape, float64 [N, n]."""
    return np.stack([np.float64(model.of_layer(layer)) for layer in layers])


def _apart(one_ND: np.ndarray, other_MD: np.ndarray) -> np.ndarray:
    """Distances [N, M] of samples as shares of their squared lengths, from 0 to 2.

    Of layers that are equally near, the one at the same place is the nearest by a hair.
    """
    size = min(one_ND.shape[1], other_MD.shape[1])
    one_ND, other_MD = one_ND[:, :size], other_MD[:, :size]
    lengths_NM = np.square(one_ND).sum(1)[:, None] + np.square(other_MD).sum(1)
    apart_NM = np.maximum(lengths_NM - 2 * one_ND @ other_MD.T, 0)
    shares_NM = apart_NM / np.where(lengths_NM > 0, lengths_NM, 1)
    places_NM = np.abs(np.subtract.outer(np.arange(len(one_ND)), np.arange(len(other_MD))))
    return shares_NM + 1e-12 * places_NM
