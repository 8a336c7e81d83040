"""Limits of distances and lengths of the models of a tree, learnt from training models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from probex_jax.forest.sketch import Sketch
from probex_jax.forest.unrelated import unrelated_limits

# A radius is at least this multiple of the largest training distance, and in logarithms that many
# standard deviations above the mean, with a lower bound for the standard deviation.
_MARGIN = 1.5
_DEVIATIONS = 6.0
_LEAST_DEVIATION = 0.1
# With few models the deviation is uncertain: at least this over the root of their number.
_FEW_DEVIATION = 0.5
# Minimal radius relative to the length of the centre; half precision changes weights by less.
_LEAST_RADIUS = 0.02
# A model or a layer may be longer or shorter than all training models by a factor. Its logarithm is
# at least the first; the second over the root of the number of models; and that many standard
# deviations of the logarithms of the lengths, and the third over that root in addition. Single
# layers vary more, and there are many of them.
_GROWTH, _LAYER_GROWTH = (0.3, 0.5, 3.0), (1.1, 1.1, 8.0)
_GROWTH_DEVIATIONS = 1.5
_MOST_GROWTH = 100.0  # within float64
# For LoRAs, whose lengths depend on learning rates and alphas.
_LORA_GROWTH = float(np.log(100))
_ROUNDING = 1e-5  # of a centre's length
# The same for the size of what a model shares with the tree, which varies less than lengths do.
_SCALE_GROWTH, _FEW_SCALE_GROWTH = 0.25, 0.5
_SCALE_MODELS = 4  # with fewer models, their own ancestor may be another than the tree's


@dataclass(frozen=True)
class Reach:
    """A centre with its limits.

    Args:
      centre_D: the mean of the training models.
      radius: as of a `TreeRouter`.
      layer_limits: as of a `TreeRouter`.
      scale: as of a `TreeRouter`.
      n_inside: number of training models that are closer to the mean of the others than unrelated
        models may be.
    """

    centre_D: np.ndarray
    radius: float
    layer_limits: tuple[float | None, ...]
    scale: tuple[float, float] | None
    n_inside: int

    @classmethod
    def fit(
        cls,
        sketch: Sketch,
        heads: Sketch,
        models_ND: np.ndarray,
        sizes_NK: np.ndarray,
        is_lora: bool,
    ) -> Reach:
        """Learns the limits from training models.

        Args:
          sketch: as of a `TreeRouter`.
          heads: as of a `TreeRouter`.
          models_ND: sketches of the models by both, concatenated.
          sizes_NK: lengths of the layers of `sketch` relative to what is usual in the tree.
          is_lora: whether they are LoRAs.
        """
        centre_D = models_ND.mean(axis=0)
        apart_ND = _from_the_others(np.float64(models_ND) - centre_D)
        split = sketch.size
        distances_N = np.linalg.norm(apart_ND[:, :split], axis=1)
        layers = (sketch + heads).layers
        if is_lora:  # they share little, whatever their origin
            radius = radius_of(distances_N, centre_D[:split], np.inf, is_lora=True)
            return cls(centre_D, radius, (None,) * len(layers), None, len(models_ND))
        arrays = (centre_D, models_ND, apart_ND)
        limit, limits_K = unrelated_limits(sketch, *(array[..., :split] for array in arrays))
        _, head_limits_K = unrelated_limits(heads, *(array[..., split:] for array in arrays))
        radius = radius_of(distances_N, centre_D[:split], limit)
        layer_limits: list[float | None] = []
        for layer, of_layer in zip(layers, [*limits_K, *head_limits_K], strict=True):
            columns = (sketch + heads).columns(layer)
            reach = _usual(
                np.linalg.norm(apart_ND[:, columns], axis=1),
                float(np.linalg.norm(centre_D[columns])),
            )
            told = reach is not None and reach < of_layer
            layer_limits.append(float(of_layer) if told else None)
        scale = _scale_range(sketch, models_ND[:, :split], sizes_NK)
        n_inside = int(np.sum(distances_N < limit))
        return cls(centre_D, radius, tuple(layer_limits), scale, n_inside)


def _from_the_others(apart_ND: np.ndarray) -> np.ndarray:
    """Differences from the mean of the other models, given those from the mean of all."""
    count = len(apart_ND)
    return apart_ND * (count / max(count - 1, 1))


def shared_size(
    sketch: Sketch, centre_D: np.ndarray, models_ND: np.ndarray, sizes_NK: np.ndarray
) -> np.ndarray:
    """The part of each model [N] along a centre, if its layers had their own lengths.

    Training adds to a model what is at right angles to the root, so it changes the length of a
    model more than the length of what it shares with its tree.

    Args:
      sketch: of the models.
      centre_D: the centre, or the centres [N, D].
      models_ND: their sketches.
      sizes_NK: lengths of the layers relative to what is usual in the tree.
    """
    shared_ND = np.float64(models_ND) * centre_D
    parts_NK = np.stack(
        [shared_ND[:, sketch.columns(layer)].sum(axis=1) for layer in sketch.layers]
    )
    return np.sum(parts_NK.T * sizes_NK, axis=1)


def _scale_range(
    sketch: Sketch, models_ND: np.ndarray, sizes_NK: np.ndarray
) -> tuple[float, float] | None:
    """The least and the greatest `shared_size` in a tree; None if its models do not tell."""
    count = len(models_ND)
    if count < _SCALE_MODELS:
        return None
    others_ND = (models_ND.sum(axis=0, dtype=np.float64) - models_ND) / (count - 1)
    shared_N = shared_size(sketch, others_ND, models_ND, sizes_NK)
    if np.min(shared_N) <= 0:
        return None
    growth = math.exp(_SCALE_GROWTH + _FEW_SCALE_GROWTH / math.sqrt(count))
    return float(np.min(shared_N)) / growth, float(np.max(shared_N)) * growth


def radius_of(
    distances_N: np.ndarray, centre_D: np.ndarray, limit: float, *, is_lora: bool = False
) -> float:
    """The radius of a tree around its centre.

    It is a multiple of the usual distances and stays below the distance of unrelated models. One
    model, or equal ones, say nothing of usual distances: it is that of unrelated models then.

    Args:
      distances_N: of each training model from the mean of the others.
      centre_D: the mean of all.
      limit: the least distance of unrelated models.
      is_lora: whether they are LoRAs.
    """
    length = float(np.linalg.norm(centre_D))
    reach = _usual(distances_N, length)
    if reach is None:
        radius = limit if np.isfinite(limit) else length or 1.0
    else:
        radius = reach if is_lora else max(reach, _LEAST_RADIUS * length)
    return max(min(radius, limit), _ROUNDING * (length or 1.0))


def _usual(distances_N: np.ndarray, length: float) -> float | None:
    """A radius from the training distances alone; None for one model or equal models."""
    farthest = _MARGIN * float(np.max(distances_N))
    if farthest <= _ROUNDING * length:
        return None
    logs_N = np.log(np.maximum(distances_N, 1e-6 * farthest))
    few = _FEW_DEVIATION / np.sqrt(len(distances_N))
    deviation = max(float(logs_N.std()), _LEAST_DEVIATION, few)
    return max(farthest, float(np.exp(logs_N.mean() + _DEVIATIONS * deviation)))


def geometric_mean(lengths_NK: np.ndarray) -> np.ndarray:
    """The geometric mean along the last axis."""
    with np.errstate(divide="ignore"):  # zero if a length is zero
        return np.exp(np.mean(np.log(lengths_NK), axis=-1))


def resized(length: float, bounds: tuple[float, float]) -> str:
    """Describes a length outside its bounds; "" for one within."""
    least, greatest = bounds
    if least <= length <= greatest:
        return ""
    typical = np.sqrt(least * greatest) or greatest
    if not typical:
        return "not all zeros, unlike"
    return f"{length / typical:.2g} times as large as" if length else "all zeros, unlike"


def length_range(
    lengths_N: np.ndarray, is_lora: bool, *, as_a_whole: bool = False, may_vanish: bool = False
) -> tuple[float, float]:
    """The least and the greatest length of a layer, or of a whole model, in a tree.

    Args:
      lengths_N: of the training models.
      is_lora: whether they are LoRAs.
      as_a_whole: whether they are of models instead of layers.
      may_vanish: whether it may be as small as can be, as a bias of one number.
    """
    least_growth, few_growth, few_deviations = _GROWTH if as_a_whole else _LAYER_GROWTH
    least, greatest = float(np.min(lengths_N)), float(np.max(lengths_N))
    few = float(1 / np.sqrt(len(lengths_N)))
    if is_lora:
        growth = _LORA_GROWTH
    else:
        deviation = float(np.log(lengths_N[lengths_N > 0]).std()) if greatest > 0 else 0.0
        deviations = _GROWTH_DEVIATIONS + few_deviations * few
        growth = max(least_growth, few_growth * few, deviations * deviation)
        growth = min(growth, _MOST_GROWTH)
    least = 0.0 if may_vanish else least * float(np.exp(-growth))
    return least, greatest * float(np.exp(growth))
