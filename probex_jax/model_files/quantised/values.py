"""The arithmetic of quantised weights: stored tensors in, float32 out, nothing else.

Each reader takes the tensors of one weight by their role and the model's config, and returns the
values in any shape; `unpacked` and `on_blocks` are what they have in common.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from probex_jax.errors import ProbexError

Parts = Mapping[str, np.ndarray]
Config = Callable[[], Mapping[str, Any]]

# The 16 values of 4-bit floats with two bits of exponent and one of mantissa (OCP MX 1.0, 5.3.3).
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([_E2M1, -_E2M1])
# Where AWQ keeps each of the eight columns of a word.
_AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_CHUNK = 2**20
_BLOCKS = (128, 64, 32, 16, 256, 512, 1024)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """The integers of 1 to 8 bits that the last axis holds without gaps, the lowest bits first.

    Args:
      packed: [..., n], any dtype.

    Returns:
      uint8 [..., m]; m is a multiple of 8, and at the end there may be padding.

    Example:
      >>> unpacked(np.array([0x43218765], np.uint32), 4)
      array([5, 6, 7, 8, 1, 2, 3, 4], dtype=uint8)
    """
    stream = np.ascontiguousarray(packed).view(np.uint8)
    if short := -stream.shape[-1] % bits:
        stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, short)])
    codes = np.empty((*stream.shape[:-1], stream.shape[-1] // bits * 8), np.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        code = stream[..., byte::bits] >> shift
        if shift + bits > 8:
            code |= stream[..., byte + 1 :: bits] << (8 - shift)
        codes[..., place::8] = code & (2**bits - 1)
    return codes


def block_size(size: int, blocks: int, known: int = 0) -> int:
    """How many rows or columns a scale is for; 0 if that many scales do not fit an axis.

    Args:
      size: of the axis.
      blocks: scales along it; the last may be for fewer.
      known: what the model's config says, taken if it fits.

    Example:
      >>> block_size(256, 2), block_size(130, 2), block_size(96, 2), block_size(8, 4)
      (128, 128, 64, 0)
    """
    if blocks in (1, size):
        return size // blocks
    found = (b for b in (known, *_BLOCKS) if b > 0 and -(-size // b) == blocks)
    return next(found, size // blocks if size % blocks == 0 and size >= 16 * blocks else 0)


def on_blocks(
    values: np.ndarray,
    each: np.ndarray,
    apply: np.ufunc = np.multiply,
    known: tuple[int, int] = (0, 0),
) -> None:
    """Multiplies each block of matrices by its number, in place, or applies another ufunc.

    Args:
      values: float32 [..., H, W], contiguous.
      each: [..., R, C], a number per block.
      apply: called with values and numbers.
      known: the size of blocks, where it is stated.
    """
    *_, height, width = values.shape
    rows, columns = each.shape[-2:]
    down, across = block_size(height, rows, known[0]), block_size(width, columns, known[1])
    spread = each if rows in (1, height) else np.repeat(each, down, axis=-2)[..., :height, :]
    if columns * across == width:
        values = values.reshape(*values.shape[:-1], columns, across)
        spread = spread[..., None]
    else:
        spread = np.repeat(spread, across, axis=-1)[..., :width]
    with np.errstate(all="ignore"):  # what becomes infinite is found by whoever reads the layer
        apply(values, spread, out=values)


def _floats(values: np.ndarray) -> np.ndarray:
    """As float32; bytes are exponents, as in all MX formats."""
    if values.dtype == np.uint8:
        values = values.view(ml_dtypes.float8_e8m0fnu)
    with np.errstate(all="ignore"):
        return values.astype(np.float32)


def _looked_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`table[codes]`, of which NumPy would widen all codes to 64 bits at once."""
    values = np.empty(codes.shape, np.float32)
    flat, codes = values.reshape(-1), codes.reshape(-1)
    for begin in range(0, codes.size, _CHUNK):
        flat[begin : begin + _CHUNK] = table[codes[begin : begin + _CHUNK]]
    return values


def _unswizzled(scales: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scales [R, C] out of the tiles of 128x4 in which tensor cores take them."""
    rows, columns = shape
    tiles = scales.reshape(-(-rows // 128), -(-columns // 4), 32, 4, 4)
    return tiles.transpose(0, 3, 2, 1, 4).reshape(-1, -(-columns // 4) * 4)[:rows, :columns]


def _order(parts: Parts, inputs: int, groups: int) -> np.ndarray:
    """The group of each input."""
    if "order" not in parts:
        return np.arange(inputs) // -(-inputs // groups)
    order = parts["order"].reshape(-1)
    if order.min() < 0 or order.max() >= groups:
        raise ProbexError(f"its order names group {order.max()}, there are {groups}")
    return order


def quantization(config: Config) -> Mapping[str, Any]:
    """What config.json says of the quantisation; {} if nothing."""
    found = config().get("quantization_config", {})
    return found if isinstance(found, Mapping) else {}


def scaled(parts: Parts, config: Config, grid: tuple[int, ...] = ()) -> np.ndarray:
    """(weight - zero) · scale, for a grid of scales [..., R, C]."""
    values = parts["weight"].astype(np.float32)
    known = quantization(config).get("weight_block_size")
    is_pair = isinstance(known, list) and len(known) == 2 and {*map(type, known)} == {int}
    blocks = (known[0], known[1]) if is_pair else (0, 0)
    if "zero" in parts:
        on_blocks(values, parts["zero"].astype(np.float32).reshape(grid), np.subtract, blocks)
    if "scale" in parts:
        on_blocks(values, _floats(parts["scale"]).reshape(grid), known=blocks)
    return values


def tiled(parts: Parts, config: Config) -> np.ndarray:
    """MXFP8 as ComfyUI keeps it."""
    values = parts["weight"].astype(np.float32)
    height, width = values.shape
    on_blocks(values, _floats(_unswizzled(parts["scale"], (height, width // 32))))
    return values


def fp4(
    parts: Parts,
    config: Config,
    group: int,
    divide: bool = False,
    is_comfy: bool = False,
    turned: bool = False,
) -> np.ndarray:
    """Two 4-bit floats a byte, scales of groups, and for NVFP4 one of the tensor.

    Args:
      group: inputs per scale.
      divide: whether the tensor's scale divides.
      is_comfy: the higher half of a byte is the first, and scales are in tiles.
      turned: the result is [..., in, out].
    """
    scale, packed = parts["scale"], parts["weight"].view(np.uint8)
    if packed.ndim == scale.ndim + 1:  # [..., out, groups, bytes]
        packed = packed.reshape(*scale.shape[:-1], -1)
    if is_comfy:
        packed = packed >> 4 | packed << 4
        scale = _unswizzled(scale, (packed.shape[0], packed.shape[1] * 2 // group))
    elif packed.shape[:-1] != scale.shape[:-1]:  # the dtype of two in a byte has no fixed shape
        packed = packed.reshape(*scale.shape[:-1], -1)
    values = _looked_up(E2M1, unpacked(packed, 4))
    on_blocks(values, _floats(scale))
    if "second" in parts:
        second = parts["second"].astype(np.float32)
        second = second.reshape((-1,) + (1,) * (values.ndim - 1) if second.size > 1 else ())
        with np.errstate(all="ignore"):
            (np.divide if divide else np.multiply)(values, second, out=values)
    return values.swapaxes(-1, -2) if turned else values


def bitsandbytes(parts: Parts, config: Config, state: Mapping[str, Any]) -> np.ndarray:
    """NF4 and FP4: a table of 16 values times the greatest of each block, which may be quantised."""
    packed = parts["weight"].reshape(-1).view(np.uint8)
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        absmax = parts["nested_map"].astype(np.float32)[absmax]
        absmax *= parts["nested_absmax"].repeat(state["nested_blocksize"])[: absmax.size]
        absmax += np.float32(state["nested_offset"])
    codes = unpacked(packed >> 4 | packed << 4, 4)[: math.prod(state["shape"])]
    values = _looked_up(parts["map"].astype(np.float32), codes)
    size = state["blocksize"]
    whole = values.size // size * size
    blocks = values[:whole].reshape(-1, size)
    with np.errstate(all="ignore"):
        blocks *= absmax[: len(blocks), None].astype(np.float32)
        values[whole:] *= absmax[-1]
    return values


def llm_int8(parts: Parts, config: Config) -> np.ndarray:
    """bitsandbytes' 8 bits: the greatest of each row is 127."""
    if parts.get("format", np.zeros(1)).any():
        raise ProbexError("it is stored in the order of a GPU's tiles, not of rows")
    values = parts["weight"].astype(np.float32)
    on_blocks(values, (parts["scale"].astype(np.float32) / np.float32(127)).reshape(-1, 1))
    return values


def gptq(parts: Parts, config: Config, bits: int, inputs: int) -> np.ndarray:
    """Words that go down the inputs; version 1 stores zeros less one."""
    scale = parts["scale"].astype(np.float32)
    groups, outputs = scale.shape
    values = unpacked(parts["weight"].T, bits)[:, :inputs].astype(np.float32)
    zeros = unpacked(parts["zero"], bits)[:, :outputs]
    stated = quantization(config)
    version = stated.get("checkpoint_format") or stated.get("format")
    if version == "gptq_p" and bits == 3:
        raise ProbexError("3 bits in planes, which are not read")
    if version not in ("gptq_v2", "gptq_p"):
        zeros = zeros + 1 & 2**bits - 1
    order = _order(parts, inputs, groups)
    values -= zeros.T[:, order]
    values *= scale.T[:, order]
    return values


def awq(parts: Parts, config: Config) -> np.ndarray:
    """Words that go along the outputs, eight in an order of AWQ's own."""

    def in_order(packed: np.ndarray) -> np.ndarray:
        codes = unpacked(packed, 4).reshape(len(packed), -1, 8)
        return codes[..., _AWQ_ORDER].reshape(len(packed), -1).T

    values = np.ascontiguousarray(in_order(parts["weight"])).astype(np.float32)
    on_blocks(values, in_order(parts["zero"]), np.subtract)
    on_blocks(values, parts["scale"].T.astype(np.float32))
    return values


def awq_gemv(parts: Parts, config: Config, group: int) -> np.ndarray:
    """Words that go along the inputs; zeros and scales have columns of padding."""
    values = unpacked(parts["weight"], 4).astype(np.float32)
    groups = values.shape[1] // group
    on_blocks(values, unpacked(parts["zero"], 4)[:, :groups], np.subtract)
    on_blocks(values, parts["scale"][:, :groups].astype(np.float32))
    return values


def pack_quantized(
    parts: Parts, config: Config, bits: int, inputs: int, grid: tuple[int, ...]
) -> np.ndarray:
    """compressed-tensors' packed integers; those without a zero point are signed."""
    values = unpacked(parts["weight"], bits)[:, :inputs].astype(np.float32)
    scale = parts["scale"].astype(np.float32).reshape(grid)
    zero = np.full(grid, 2 ** (bits - 1), np.uint8)
    if "zero" in parts:
        zero = unpacked(parts["zero"].T, bits)[:, : grid[0]].T
    if "order" in parts and (parts["order"] >= 0).all():
        order = _order(parts, inputs, grid[1])
        scale, zero = scale[:, order], zero[:, order]
    on_blocks(values, zero, np.subtract)
    on_blocks(values, scale)
    return values


def mlx(parts: Parts, config: Config, bits: int) -> np.ndarray:
    """code · scale + bias, of each group."""
    values = unpacked(parts["weight"], bits).astype(np.float32)
    on_blocks(values, parts["scale"].astype(np.float32))
    on_blocks(values, parts["bias"].astype(np.float32), np.add)
    return values


def mlx_floats(parts: Parts, config: Config, group: int) -> np.ndarray:
    """MLX's mxfp8, mxfp4 and nvfp4, whose scales are bytes."""
    scale = parts["scale"]
    if group == 16:
        scale = scale.view(ml_dtypes.float8_e4m3fn)
    if parts["weight"].shape[-1] * 4 == scale.shape[-1] * group:
        codes = np.ascontiguousarray(parts["weight"]).view(ml_dtypes.float8_e4m3fn)
        return scaled({"weight": codes, "scale": scale}, dict, scale.shape)
    return fp4({"weight": parts["weight"], "scale": scale}, config, group)


def hqq(parts: Parts, config: Config, bits: int, rows: int) -> np.ndarray:
    """(code - zero) · scale; the codes of a word lie a block of rows apart, the highest first."""
    packed = parts["weight"]
    packed = packed.view(np.uint8) if packed.itemsize < 4 or packed.dtype.kind == "f" else packed
    top = 30 if packed.itemsize == 4 else 8
    blocks = [packed >> shift & 2**bits - 1 for shift in range(top - bits, -1, -bits)]
    values = np.concatenate(blocks).astype(np.float32)[:rows]
    values -= parts["zero"].astype(np.float32)
    values *= parts["scale"].astype(np.float32)
    return values
