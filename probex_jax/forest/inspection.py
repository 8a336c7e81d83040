"""Looks at the layers of a model: what is unusual about it."""

from __future__ import annotations

import math

import numpy as np

from probex_jax.experts import Read
from probex_jax.forest.router import Route
from probex_jax.forest.soundness import Finding, Soundness
from probex_jax.forest.usual import Usual
from probex_jax.forest.usual_layer import Sampled, sample
from probex_jax.matrices import LowRank, stack
from probex_jax.model_files import LayerInfo, ModelFile

# Parameters of models that are read whole; of those on servers.
_SMALL, _SMALL_REMOTE = 2**24, 2**21
_PLAIN = ("F64", "F32", "F16", "BF16")  # of which single rows can be read


def inspect(
    model: ModelFile, route: Route, usual: Usual | None, read: Read, *, is_remote: bool
) -> Soundness | None:
    """Compares a model with what is usual in its tree.

    A small model is read whole, vectors for NaN alone. Of a large one a sample of some layers is
    read; on a server, only layers that were read already.

    Args:
      model: open, with `unfit_as_zero`.
      route: of the model. A tree that refuses it is compared with, too, but what is unusual in
        most layers is no news then.
      usual: of the nearest tree; None if there is none, or the forest is of an earlier version.
      read: the layers that the tree's experts read of it.
      is_remote: whether it is on a server.

    Returns:
      What was found; None if nothing was looked at.

    Raises:
      ProbexError: if a layer cannot be read.
    """
    samples, whole = ({}, False) if usual is None else _samples(model, usual, read, is_remote)
    bad = {name for name in samples if {name, *model.tensors_of(name)} & model.unfit.keys()}
    findings = [
        Finding(name, "not finite", count, n_entries=size)
        for name, (count, size) in sorted(model.unfit.items())
    ]
    if usual is not None:
        p_value, found = usual.judge({n: x for n, x in samples.items() if n not in bad})
        if route.tree or 2 * len(found) <= len(samples):
            counts = usual.n_models, len(samples), len(model.layers)
            return Soundness(route.nearest, *counts, whole, p_value, (*findings, *found))
    if not findings:
        return None
    return Soundness("", 0, 0, len(model.layers), whole, None, tuple(findings))


def _samples(
    model: ModelFile, usual: Usual, read: Read, is_remote: bool
) -> tuple[dict[str, Sampled], bool]:
    """The samples of the layers that are looked at, and whether the model was read whole."""
    wanted = {
        layer.name: layer.shape
        for layer in usual.layers
        if layer.name in model.layers and model.layers[layer.name].shape == layer.shape
    }
    samples = {n: _sampled(read[n], n, shape) for n, shape in wanted.items() if n in read}
    whole = sum(map(_size, model.all_layers.values())) <= (_SMALL_REMOTE if is_remote else _SMALL)
    if whole:
        for name, matrix in model.each_matrix(n for n in model.all_layers if n not in samples):
            if name in wanted:
                samples[name] = _sampled(matrix, name, wanted[name])
    elif not is_remote:
        for name in wanted.keys() - samples.keys():
            rows, columns = sample(name, *wanted[name])
            if model.layers[name].rank is not None:
                samples[name] = _sampled(model.matrix(name), name, wanted[name])
            elif model.layers[name].dtype in _PLAIN:
                found = model.rows(name, rows.tolist())
                samples[name] = Sampled.of_rows(found[None], columns)
    return samples, whole


def _sampled(matrix: np.ndarray | LowRank, name: str, shape: tuple[int, int]) -> Sampled:
    return Sampled.of(stack([matrix]), name, shape)


def _size(layer: LayerInfo) -> int:
    """How many numbers a layer is stored as."""
    return math.prod(layer.shape) if layer.rank is None else layer.rank * sum(layer.shape)
