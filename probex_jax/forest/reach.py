"""How far from a centre, and how large, models of its tree may be: learnt from training models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probex_jax.forest.sketch import Sketch
from probex_jax.forest.unrelated import unrelated_limits

# A radius reaches over the farthest training model by this much, and over the mean of the
# logarithms of the distances by so many of their standard deviations, these being no less than so.
_MARGIN = 1.5
_DEVIATIONS = 6.0
_LEAST_DEVIATION = 0.1
# Of few models that deviation is itself a guess: no less than this over the root of their number.
_FEW_DEVIATION = 0.5
# No radius is below this share of the centre's length: half precision alone moves weights by less.
_LEAST_RADIUS = 0.02
# A layer may be larger or smaller than in all training models by a factor: its logarithm is no less
# than this, nor than this over the root of the number of models, nor than so many standard
# deviations of the logarithms of the lengths, and so many more over that root.
_LEAST_GROWTH = 0.3
_FEW_GROWTH = 1.0
FEW_GROWTH_AS_A_WHOLE = 0.5  # layers that differ by chance make up for each other
_GROWTH_DEVIATIONS = 1.5
_FEW_GROWTH_DEVIATIONS = 8.0
_MOST_GROWTH = 100.0  # what float64 still holds
# Of LoRAs, whose sizes follow from learning rates and alphas, it is this.
_LORA_GROWTH = float(np.log(100))
_ROUNDING = 1e-5  # of a centre's length


@dataclass(frozen=True)
class Reach:
    """A centre, and how far from it models of its tree may be.

    Args:
      centre_D, radius, layer_limits: as of a `TreeRouter`.
      n_inside: how many of its training models are nearer than unrelated ones may be, each to the
        mean of the others.
    """

    centre_D: np.ndarray
    radius: float
    layer_limits: tuple[float | None, ...]
    n_inside: int

    @classmethod
    def fit(cls, sketch: Sketch, heads: Sketch, models_ND: np.ndarray, is_lora: bool) -> Reach:
        """Learns it from the training models around the centre.

        Args:
          sketch, heads: as of a `TreeRouter`.
          models_ND: what both make of the models, side by side.
          is_lora: whether they are LoRAs.
        """
        centre_D = models_ND.mean(axis=0)
        apart_ND = _from_the_others(np.float64(models_ND) - centre_D)
        split = sketch.size
        distances_N = np.linalg.norm(apart_ND[:, :split], axis=1)
        layers = (sketch + heads).layers
        if is_lora:  # they have little in common, whatever their origin
            radius = radius_of(distances_N, centre_D[:split], np.inf, is_lora=True)
            return cls(centre_D, radius, (None,) * len(layers), len(models_ND))
        arrays = (centre_D, models_ND, apart_ND)
        limit, limits_K = unrelated_limits(sketch, *(array[..., :split] for array in arrays))
        _, head_limits_K = unrelated_limits(heads, *(array[..., split:] for array in arrays))
        radius = radius_of(distances_N, centre_D[:split], limit)
        varies = _usual(distances_N, float(np.linalg.norm(centre_D[:split]))) is not None
        layer_limits: list[float | None] = []
        for layer, of_layer in zip(layers, [*limits_K, *head_limits_K], strict=True):
            apart_NL = apart_ND[:, (sketch + heads).columns(layer)]
            farthest = float(np.max(np.linalg.norm(apart_NL, axis=1)))
            # Of few models, others may be farther; of one, nobody knows how far.
            told = varies and farthest * (1 + len(models_ND) ** -0.5) < of_layer
            layer_limits.append(float(of_layer) if told else None)
        n_inside = int(np.sum(distances_N < limit))
        return cls(centre_D, radius, tuple(layer_limits), n_inside)


def _from_the_others(apart_ND: np.ndarray) -> np.ndarray:
    """Of differences from the mean those from the mean of the others: each has drawn it near."""
    count = len(apart_ND)
    return apart_ND * (count / max(count - 1, 1))


def radius_of(
    distances_N: np.ndarray, centre_D: np.ndarray, limit: float, *, is_lora: bool = False
) -> float:
    """How far from a centre models of its tree may be.

    Never so far as unrelated models are; nor so far that they would have less than half of their
    weights in common with it, unless training models have; but LoRAs have little in common anyway.

    Args:
      distances_N: of each training model, from the mean of the others.
      centre_D: the mean of all.
      limit: no unrelated model is nearer.
      is_lora: whether they are LoRAs.
    """
    length = float(np.linalg.norm(centre_D))
    reach = _usual(distances_N, length)
    if reach is None:
        radius = length or 1.0
    elif is_lora:
        radius = reach
    else:
        farthest = _MARGIN * float(np.max(distances_N))
        radius = min(max(reach, _LEAST_RADIUS * length), max(farthest, length))
    return max(min(radius, limit), _ROUNDING * (length or 1.0))


def _usual(distances_N: np.ndarray, length: float) -> float | None:
    """How far training models show that others may be; None for one model, or if all are alike."""
    farthest = _MARGIN * float(np.max(distances_N))
    if farthest <= _ROUNDING * length:
        return None
    logs_N = np.log(np.maximum(distances_N, 1e-6 * farthest))
    few = _FEW_DEVIATION / np.sqrt(len(distances_N))
    deviation = max(float(logs_N.std()), _LEAST_DEVIATION, few)
    return max(farthest, float(np.exp(logs_N.mean() + _DEVIATIONS * deviation)))


def geometric_mean(lengths_NK: np.ndarray) -> np.ndarray:
    """Of the last axis."""
    with np.errstate(divide="ignore"):  # of a length of zero it is zero
        return np.exp(np.mean(np.log(lengths_NK), axis=-1))


def resized(length: float, bounds: tuple[float, float]) -> str:
    """What a length is that lies outside of its bounds; "" of one within."""
    least, greatest = bounds
    if least <= length <= greatest:
        return ""
    typical = np.sqrt(least * greatest) or greatest
    if not typical:
        return "not all zeros, unlike"
    return f"{length / typical:.2g} times as large as" if length else "all zeros, unlike"


def length_range(
    lengths_N: np.ndarray, is_lora: bool, few_growth: float = _FEW_GROWTH
) -> tuple[float, float]:
    """The least and the greatest length that a layer, or all together, may have in a tree."""
    least, greatest = float(np.min(lengths_N)), float(np.max(lengths_N))
    few = float(1 / np.sqrt(len(lengths_N)))
    if is_lora:
        growth = _LORA_GROWTH
    else:
        deviation = float(np.log(lengths_N[lengths_N > 0]).std()) if greatest > 0 else 0.0
        deviations = _GROWTH_DEVIATIONS + _FEW_GROWTH_DEVIATIONS * few
        growth = max(_LEAST_GROWTH, few_growth * few, deviations * deviation)
        growth = min(growth, _MOST_GROWTH)
    return least * float(np.exp(-growth)), greatest * float(np.exp(growth))
