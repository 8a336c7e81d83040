"""Whether two models have the same weights, up to the rounding of the dtypes they are stored in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from probex_jax.lineage.pairs import pair_layers
from probex_jax.lineage.sketch import sketch
from probex_jax.matrices import LowRank
from probex_jax.model_files import ModelFile

# Dtypes whose rounding makes a copy: bits of the significand, the exponent of the least normal.
# Coarser ones, such as eight bits, make another model, which is a quantised one.
_ROUNDING = {"BF16": (8, -126), "F16": (11, -14)}
# All others are compared in float32, where products of factors have rounding of their own.
_FLOAT32 = (24, -126)
_OF_PRODUCTS = 2.0**-20

# A value may have been rounded to F16 on its way to BF16: as a share of BF16's rounding, and where
# F16 has few bits, which leaves multiples of its least number.
_SLACK, _TINY = 1 + 2.0**-3, np.float32(2.0**-25)
# Errors of rounding are uniform: the mean square is a third of that of the largest. Of so many,
# less than this is a change that happens to be small.
_MANY, _LEAST_SQUARE = 64, 0.15

_EXPONENT = np.uint32(0x7F800000)  # its bits in float32

_BLOCK = 2**18  # entries that are compared at a time


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
    half a unit in the last place. A model in F32 that has only numbers of BF16 or F16 counts as one
    of those. Weights in eight bits or fewer are compared as the numbers they
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
    largest, where, squares, count = 0.0, "", 0.0, 0
    dtypes = meant_dtypes(one), meant_dtypes(other)
    for name in sorted(pairs, key=lambda name: math.prod(one.all_layers[name].shape)):
        if until_refuted and not is_rounding:
            break
        roundings = rounding_of(dtypes[0][name]), rounding_of(dtypes[1][pairs[name]])
        found, fits, shares = _compared((one.matrix(name), other.matrix(pairs[name])), roundings)
        is_rounding = is_rounding and fits
        squares, count = squares + shares[0], count + shares[1]
        if found > largest:
            largest, where = found, name
    is_uniform = count < _MANY or squares > _LEAST_SQUARE * count
    return Difference(largest, where, is_rounding and is_uniform)


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


def meant_dtypes(model: ModelFile) -> dict[str, str]:
    """The dtypes of all layers, of a model in F32 that was in BF16 or F16 before the latter."""
    stored = {name: layer.dtype for name, layer in model.all_layers.items()}
    if {*stored.values()} <= {"F32", "F64"}:
        return dict.fromkeys(stored, coarsest(sketch(model).values))
    return stored


def coarsest(values: np.ndarray) -> str:
    """The coarsest of BF16, F16 and F32 that has all the values.

    Example:
      >>> [coarsest(np.float32(values)) for values in ([1, 0.5], [1, 1 + 2**-10], [0.1])]
      ['BF16', 'F16', 'F32']
    """
    with np.errstate(over="ignore"):
        for dtype, kind in (("BF16", ml_dtypes.bfloat16), ("F16", np.float16)):
            if np.array_equal(values.astype(kind).astype(np.float32), values):
                return dtype
    return "F32"


def _compared(
    pair: tuple[np.ndarray | LowRank, np.ndarray | LowRank],
    roundings: tuple[tuple[int, int], tuple[int, int]],
) -> tuple[float, bool, tuple[float, int]]:
    """The largest difference of two layers, whether it may be rounding, and its size.

    The size is the sum of squares of differences as shares of what is allowed, and their number.
    """
    differ = roundings[0] != roundings[1]
    largest, fits, squares, count = 0.0, True, 0.0, 0
    for rows in _blocks(pair[0].shape):
        one_KW, other_KW = (_rows(matrix, rows) for matrix in pair)
        with np.errstate(over="ignore"):  # infinity is refused below
            apart_KW = np.abs(one_KW - other_KW)
        if not apart_KW.any():
            continue
        largest = max(largest, float(apart_KW.max()))
        if fits:
            allowed_KW = np.zeros_like(apart_KW)
            for matrix, rounding in zip(pair, roundings, strict=True):
                allowed_KW += _allowed(matrix, rows, rounding, differ)
            fits = bool((apart_KW <= allowed_KW * _SLACK).all())
            if fits:
                shares = np.divide(apart_KW, allowed_KW, out=apart_KW, where=apart_KW > 0).ravel()
                squares += float(np.vdot(shares, shares))
                count += int(np.count_nonzero(shares))
    are_factors = any(isinstance(matrix, LowRank) for matrix in pair)
    return largest, fits, (0.0, 0) if are_factors else (squares, count)


def _allowed(
    matrix: np.ndarray | LowRank, rows: slice, rounding: tuple[int, int], differ: bool
) -> np.ndarray | float:
    """How far rows of a layer may be from those of its copy, on its side."""
    if isinstance(matrix, LowRank):
        share = _OF_PRODUCTS + (2.0 ** (1 - rounding[0]) if differ else 0)
        return share * (np.abs(matrix.up[rows]) @ np.abs(matrix.down))
    if not differ:
        return 0.0
    values = matrix[rows]
    allowed_KW = _half_a_unit(values, *rounding)
    if rounding == _ROUNDING["BF16"] and (small := np.abs(values) < 2.0**-14).any():
        units = values[small] / (2 * _TINY)
        allowed_KW[small] += np.where(units == np.rint(units), _TINY, 0)
    return allowed_KW


def _half_a_unit(values: np.ndarray, bits: int, least: int) -> np.ndarray:
    """Half the distance of neighbouring numbers of a dtype, at values in float32."""
    powers = (values.view(np.uint32) & _EXPONENT).view(np.float32)
    return np.maximum(powers, np.float32(2.0**least)) * np.float32(2.0**-bits)


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    height = max(_BLOCK // shape[1], 1)
    return (slice(begin, begin + height) for begin in range(0, shape[0], height))


def _rows(matrix: np.ndarray | LowRank, rows: slice) -> np.ndarray:
    return matrix.up[rows] @ matrix.down if isinstance(matrix, LowRank) else matrix[rows]
