"""Whether two models have the same weights, up to the rounding of the dtypes they are stored in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from probex_jax.lineage.pairs import pair_layers
from probex_jax.matrices import LowRank
from probex_jax.model_files import LayerInfo, ModelFile

# Dtypes whose rounding makes a copy: bits of the significand, the exponent of the least normal.
# Coarser ones, such as eight bits, make another model, which is a quantised one.
_ROUNDING = {"BF16": (8, -126), "F16": (11, -14)}
# All others are compared in float32, where products of factors have rounding of their own.
_FLOAT32 = (24, -126)
_OF_PRODUCTS = 2.0**-20

# A value may have been rounded to F16 on its way to BF16.
_SLACK = 1 + 2.0**-3

_BLOCK = 2**20  # entries that are compared at a time


@dataclass(frozen=True)
class Difference:
    """How two models differ.

    Args:
      largest: the largest difference of two entries, of the layers that were compared.
      layer: the name of its layer in the first model; "" if there is no difference.
      is_rounding: whether all layers have a partner, and all entries differ by no more than the
        rounding of the coarser of the two dtypes.
    """

    largest: float
    layer: str
    is_rounding: bool


def largest_difference(
    one: ModelFile,
    other: ModelFile,
    pairs: Mapping[str, str] | None = None,
    *,
    until_refuted: bool = False,
) -> Difference:
    """Compares all entries of two models, layer by layer.

    Layers of one dtype must be equal; of F16 or BF16 and another one, each entry must be within
    half a unit in the last place. Weights in eight bits or fewer are compared as the numbers they
    mean: a model is no copy of its quantised form, nor the other way round. Updates are compared
    as products of their factors.

    Args:
      one: a model, open.
      other: another one.
      pairs: name in `one` to name in `other`, all of one shape; None for those of `pair_layers`.
      until_refuted: whether to stop at the first layer that is no copy; small ones come first.

    Returns:
      The largest difference, and whether it is rounding.

    Raises:
      ProbexError: if a layer cannot be read.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> weights = np.random.default_rng(0).normal(size=(8, 8)).astype("f4")
      >>> one, half = open_params({"a": weights}), open_params({"b": weights.astype("f2")})
      >>> changed = open_params({"a": weights + np.float32(0.25) * np.eye(8, dtype="f4")})
      >>> largest_difference(one, half).is_rounding
      True
      >>> largest_difference(one, changed)
      Difference(largest=0.25, layer='a', is_rounding=False)
    """
    pairs = pair_layers(one, other) if pairs is None else pairs
    is_rounding = len(pairs) == len(one.all_layers) == len(other.all_layers)
    largest, where = 0.0, ""
    for name in sorted(pairs, key=lambda name: math.prod(one.all_layers[name].shape)):
        if until_refuted and not is_rounding:
            break
        ours, theirs = one.all_layers[name], other.all_layers[pairs[name]]
        found, fits = _compared(one.matrix(name), ours, other.matrix(pairs[name]), theirs)
        is_rounding = is_rounding and fits
        if found > largest:
            largest, where = found, name
    return Difference(largest, where, is_rounding)


def copy_difference(one: ModelFile, other: ModelFile) -> float | None:
    """The largest difference of two models with the same weights; None if they are no copies.

    Layers are paired by their names, then by their values, since names can be shuffled.

    Args:
      one: a model, open.
      other: another one.

    Raises:
      ProbexError: if a layer cannot be read.

    Example:
      >>> from probex_jax.model_files import open_params
      >>> a_HW, b_HW = np.random.default_rng(0).normal(size=(2, 16, 16)).astype("f4")
      >>> one, other = open_params({"a": a_HW, "b": b_HW}), open_params({"a": b_HW, "b": a_HW})
      >>> copy_difference(one, other)
      0.0
    """
    if len(one.all_layers) != len(other.all_layers):
        return None
    pairs = pair_layers(one, other)
    found = largest_difference(one, other, pairs, until_refuted=True)
    if not found.is_rounding:
        by_value = pair_layers(one, other, by_name=False)
        if by_value == pairs:
            return None
        found = largest_difference(one, other, by_value, until_refuted=True)
    return found.largest if found.is_rounding else None


def rounding_of(dtype: str) -> tuple[int, int]:
    """The bits of a dtype's significand, and the exponent of its least normal number.

    Example:
      >>> rounding_of("BF16"), rounding_of("F32")
      ((8, -126), (24, -126))
    """
    return _ROUNDING.get(dtype, _FLOAT32)


def _compared(
    one: np.ndarray | LowRank, ours: LayerInfo, other: np.ndarray | LowRank, theirs: LayerInfo
) -> tuple[float, bool]:
    """The largest difference of two layers, and whether it is rounding."""
    roundings = rounding_of(ours.dtype), rounding_of(theirs.dtype)
    rounded = [] if roundings[0] == roundings[1] else [*roundings]
    largest, fits = 0.0, True
    for rows in _blocks(ours.shape):
        one_KW, other_KW = _rows(one, rows), _rows(other, rows)
        apart_KW = np.abs(one_KW - other_KW)
        if not apart_KW.any():
            continue
        largest = max(largest, float(apart_KW.max()))
        if fits:
            allowed_KW = np.zeros_like(apart_KW)
            for matrix, matrix_KW, rounding in zip(
                (one, other), (one_KW, other_KW), rounded or (_FLOAT32, _FLOAT32), strict=True
            ):
                if isinstance(matrix, LowRank):
                    share = _OF_PRODUCTS + (2.0 ** (1 - rounding[0]) if rounded else 0)
                    allowed_KW += share * (np.abs(matrix.up[rows]) @ np.abs(matrix.down))
                elif rounded:
                    allowed_KW += _half_a_unit(matrix_KW, *rounding)
            fits = bool((apart_KW <= allowed_KW * _SLACK).all())
    return largest, fits


def _half_a_unit(values: np.ndarray, bits: int, least: int) -> np.ndarray:
    """Half the distance of neighbouring numbers of a dtype, at values."""
    exponents = np.where(values == 0, least, np.maximum(np.frexp(values)[1] - 1, least))
    return np.ldexp(np.float32(1), exponents - bits)


def _blocks(shape: tuple[int, int]) -> Iterator[slice]:
    height = max(_BLOCK // shape[1], 1)
    return (slice(begin, begin + height) for begin in range(0, shape[0], height))


def _rows(matrix: np.ndarray | LowRank, rows: slice) -> np.ndarray:
    return matrix.up[rows] @ matrix.down if isinstance(matrix, LowRank) else matrix[rows]
