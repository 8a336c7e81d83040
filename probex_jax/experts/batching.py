"""Models of a stream in batches of few shapes, so that few programs are compiled."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from probex_jax.experts.expert import Expert
from probex_jax.matrices import LowRank, stack

_Model = TypeVar("_Model")

# Models that one compiled call takes, less where their matrices are large.
_MODELS = 32
_BYTES = 256 * 2**20

# What an expert reads of one model, by layer.
Read = Mapping[str, np.ndarray | LowRank]


def batch_size(layers: Mapping[str, tuple[int, int]], models: int) -> int:
    """How many models a call should take, of so many that there are.

    Args:
      layers: what is read of each: names to (H, W).
      models: how many there are.

    Returns:
      A power of two.
    """
    model_bytes = sum(4 * height * width for height, width in layers.values())
    most = max(1, min(_MODELS, _BYTES // model_bytes))
    return min(1 << (most.bit_length() - 1), 1 << (max(models, 1) - 1).bit_length())


def sized(
    readings: Sequence[Mapping[str, tuple[int, int]]], models: Iterable[_Model]
) -> tuple[int, Iterator[_Model]]:
    """How many models of a stream a call should take, and the stream.

    Args:
      readings: the layers that are read of each, of one expert or another.
      models: any number, of which few are looked at.

    Returns:
      The least `batch_size`, and all models.

    Example:
      >>> sized([{"a": (2, 3)}], "abc")[0]
      4
    """
    waiting = iter(models)
    first = list(islice(waiting, _MODELS))
    size = min((batch_size(layers, len(first)) for layers in readings), default=_MODELS)
    return size, chain(first, waiting)


def in_batches(
    expert: Expert, models: Sequence[Read], size: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Stacks what was read of models, for `Expert.encode` and its like.

    Args:
      expert: what will read them.
      models: from `Expert.read`.
      size: of every batch; the last ones are filled up with copies.

    Yields:
      Places in `models`, at most `size`, and the matrices [size, H, W] by layer, in whose first
      rows these models are. Models that keep a layer as factors are not mixed with others.
    """
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for place, matrices in enumerate(models):
        kind = tuple(isinstance(matrix, LowRank) for matrix in matrices.values())
        kinds.setdefault(kind, []).append(place)
    for places in kinds.values():
        for start in range(0, len(places), size):
            batch = places[start : start + size]
            yield (
                batch,
                {
                    layer: _filled([models[place][layer] for place in batch], size)
                    for layer in expert.layers
                },
            )


def _filled(matrices: list[Any], size: int) -> np.ndarray | LowRank:
    """A batch of `size`, the last ones being copies; ranks are powers of two, to compile few."""
    rank = None
    if isinstance(matrices[0], LowRank):
        rank = 1 << (max(matrix.up.shape[-1] for matrix in matrices) - 1).bit_length()
    return stack([*matrices, *[matrices[0]] * (size - len(matrices))], rank)
