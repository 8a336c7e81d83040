"""The arithmetic of quantised weights: stored tensors in, float32 out.

A reader takes the tensors of one weight by their role, and the model's config, and returns the
values in any shape. `unpacked` and `on_blocks` are what they have in common.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from probex_jax.errors import ProbexError

Parts = Mapping[str, np.ndarray]
Config = Callable[[], Mapping[str, Any]]

# 4-bit floats with two bits of exponent and one of mantissa (OCP MX 1.0, 5.3.3).
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# The column of each of the eight values in a word of AWQ's.
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_CHUNK = 2**20
_BLOCKS = (128, 64, 32, 16, 256, 512, 1024)


def unpacked(packed: np.ndarray, bits: int, columns: Sequence[int] = range(8)) -> np.ndarray:
    """The integers of 1 to 8 bits that the last axis holds without gaps, the lowest bits first.

    Args:
      packed: [..., n], any dtype.
      columns: where eight integers in a row belong.

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
        codes[..., columns[place] :: 8] = code & (2**bits - 1)
    return codes


def block_size(size: int, blocks: int, known: int = 0) -> int:
    """How many rows or columns one scale is for; 0 if so many scales do not fit an axis.

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
      each: [..., R, C], a number a block.
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
    apply(values, spread, out=values)


def quantization(config: Config) -> Mapping[str, Any]:
    """What config.json says of the quantisation; {} if nothing."""
    found = config().get("quantization_config")
    return found if isinstance(found, Mapping) else {}


def grid_of(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...] | None:
    """Scales as a grid over the last two axes of a weight; None if they do not fit.

    Example:
      >>> [grid_of((8, 32), scale) for scale in ((), (8,), (8, 2), (9,))]
      [(1, 1), (8, 1), (8, 2), None]
    """
    ends = len(scale)
    while ends and scale[ends - 1] == 1:
        ends -= 1
    if len(shape) > 1 and scale[:ends] in ((), shape[:1]):  # one, or one each of the first axis
        return (*scale[:ends], *(1,) * (len(shape) - ends))
    if not 1 < len(scale) == len(shape):
        return None
    fits = [blocks in (1, size) for size, blocks in zip(shape[:-2], scale[:-2], strict=True)]
    fits += [block_size(*pair) > 0 for pair in zip(shape[-2:], scale[-2:], strict=True)]
    return scale if all(fits) else None


def scaled(parts: Parts, config: Config) -> np.ndarray:
    """(weight - zero) · scale, for a grid of scales."""
    grid = grid_of(parts["weight"].shape, parts["scale"].shape)
    assert grid is not None
    has_blocks = not {*grid} <= {1, *parts["weight"].shape}
    known = quantization(config).get("weight_block_size") if has_blocks else None
    is_pair = isinstance(known, list) and [*map(type, known)] == [int, int]
    blocks = (known[0], known[1]) if known and is_pair else (0, 0)
    zero = parts["zero"].reshape(grid) if "zero" in parts else None
    return _affine(parts["weight"], parts["scale"].reshape(grid), zero, known=blocks)


def tiled(parts: Parts, config: Config) -> np.ndarray:
    """MXFP8 as ComfyUI keeps it."""
    height, width = parts["weight"].shape
    return _affine(parts["weight"], _untiled(parts["scale"], height, width // 32))


def fp4(
    parts: Parts, config: Config, *, divide: bool = False, is_comfy: bool = False
) -> np.ndarray:
    """Two 4-bit floats a byte, a scale a group of inputs, and for NVFP4 one of the tensor.

    Args:
      divide: whether the tensor's scale divides.
      is_comfy: the higher half of a byte is the first, and scales are in tiles.
    """
    scale, values = parts["scale"], _two_a_byte(_E2M1, parts["weight"], is_comfy)
    if is_comfy:
        values = values.reshape(len(parts["weight"]), -1)
        scale = _untiled(scale, values.shape[0], values.shape[1] // 16)
    values = values.reshape(*scale.shape[:-1], -1)
    on_blocks(values, _floats(scale))
    if "second" in parts:
        second = parts["second"].astype(np.float32).reshape(-1, *(1,) * (values.ndim - 1))
        (np.divide if divide else np.multiply)(values, second, out=values)
    return values


def experts(parts: Parts, config: Config) -> np.ndarray:
    """MXFP4 as in gpt-oss; [E, out, in] are turned."""
    return fp4(parts, config).swapaxes(1, 2)


def bitsandbytes(parts: Parts, config: Config, state: Mapping[str, Any]) -> np.ndarray:
    """A table of 16 values times the greatest of each block, which may be quantised itself."""
    absmax, size = parts["absmax"], state["size"]
    if "nested_absmax" in parts:
        absmax = parts["nested_map"].astype(np.float32)[absmax]
        absmax *= parts["nested_absmax"][np.arange(absmax.size) // state["nested_blocksize"]]
        absmax += np.float32(state["nested_offset"])
    values = _two_a_byte(parts["map"].astype(np.float32), parts["weight"], True)[: state["count"]]
    whole = values.size // size * size
    values[:whole].reshape(-1, size)[:] *= absmax[: whole // size, None]
    values[whole:] *= absmax[-1]
    return values


def llm_int8(parts: Parts, config: Config) -> np.ndarray:
    """bitsandbytes' 8 bits: the greatest of each row is 127."""
    if "format" in parts and parts["format"].any():
        raise ProbexError("it is stored in a GPU's order, not by rows")
    return _affine(parts["weight"], parts["scale"].reshape(-1, 1).astype(np.float32) / 127)


def gptq(parts: Parts, config: Config, bits: int, inputs: int) -> np.ndarray:
    """Words go down the inputs; version 1 stores zeros less one."""
    scale, stated = parts["scale"].T, quantization(config)
    zeros = unpacked(parts["zeros"], bits)[:, : len(scale)].T
    version = stated.get("checkpoint_format") or stated.get("format")
    if version == "gptq_p" and bits == 3:
        raise ProbexError("3 bits in planes, which are not read")
    if version not in ("gptq_v2", "gptq_p"):
        zeros = (zeros + 1) & (2**bits - 1)
    return _affine(unpacked(parts["weight"].T, bits)[:, :inputs], scale, zeros, parts.get("order"))


def awq(parts: Parts, config: Config) -> np.ndarray:
    """Words go along the outputs, in an order of AWQ's own."""
    codes, zeros = (unpacked(parts[role], 4, _AWQ_COLUMNS).T for role in ("weight", "zeros"))
    return _affine(codes, parts["scale"].T, zeros)


def awq_gemv(parts: Parts, config: Config, groups: int) -> np.ndarray:
    """Words go along the inputs; zeros and scales have columns of padding."""
    zeros = unpacked(parts["zeros"], 4)[:, :groups]
    return _affine(unpacked(parts["weight"], 4), parts["scale"][:, :groups], zeros)


def compressed(
    parts: Parts, config: Config, bits: int, inputs: int, grid: tuple[int, ...]
) -> np.ndarray:
    """Packed integers of compressed-tensors; without a zero point they are signed."""
    zeros = np.full(grid, 2 ** (bits - 1), np.uint8)
    if "zeros" in parts:
        zeros = unpacked(parts["zeros"].T, bits)[:, : grid[0]].T
    order = parts.get("order")
    order = None if order is not None and (order < 0).any() else order  # -1 stands for none
    codes = unpacked(parts["weight"], bits)[:, :inputs]
    return _affine(codes, parts["scale"].reshape(grid), zeros, order)


def mlx(parts: Parts, config: Config, bits: int) -> np.ndarray:
    """code · scale + bias, of each group."""
    values = _affine(unpacked(parts["weight"], bits), parts["scale"])
    on_blocks(values, parts["bias"].astype(np.float32), np.add)
    return values


def mlx_floats(parts: Parts, config: Config, group: int, bits: int) -> np.ndarray:
    """MLX's mxfp8, mxfp4 and nvfp4; of the last the scales are floats, too."""
    scale = parts["scale"]
    if bits == 8:
        return _affine(parts["weight"].view(ml_dtypes.float8_e4m3fn), scale)
    scale = scale.view(ml_dtypes.float8_e4m3fn) if group == 16 else scale
    return fp4({"weight": parts["weight"], "scale": scale}, config)


def hqq(parts: Parts, config: Config, bits: int, rows: int) -> np.ndarray:
    """(code - zero) · scale; the codes of a word lie a block of rows apart, the highest first."""
    packed: np.ndarray = parts["weight"].view(np.int32 if bits == 3 else np.uint8)
    shifts = range((30 if bits == 3 else 8) - bits, -1, -bits)
    values = np.concatenate([packed >> s & 2**bits - 1 for s in shifts], dtype=np.float32)[:rows]
    values -= parts["zero"].astype(np.float32)
    values *= parts["scale"].astype(np.float32)
    return values


def _affine(
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None = None,
    order: np.ndarray | None = None,
    known: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """(codes - zero) · scale, of blocks, or of the group of inputs that `order` names for each."""
    values = np.ascontiguousarray(codes).astype(np.float32)
    scale = _floats(scale)
    if order is not None and (order.min() < 0 or order.max() >= scale.shape[-1]):
        raise ProbexError(f"an input is of group {order.max()}, there are {scale.shape[-1]}")
    for each, apply in ((zero, np.subtract), (scale, np.multiply)):
        if each is not None:
            each = np.ascontiguousarray(each)
            on_blocks(values, each if order is None else each.take(order, -1), apply, known)
    return values


def _floats(values: np.ndarray) -> np.ndarray:
    """As float32; bytes are exponents, as in all MX formats."""
    if values.dtype == np.uint8:
        values = values.view(ml_dtypes.float8_e8m0fnu)
    return values.astype(np.float32)


def _two_a_byte(table: np.ndarray, packed: np.ndarray, is_high_first: bool) -> np.ndarray:
    """float32 [2·n] of a table of 16, for 4-bit codes in n bytes, which are looked up in pairs."""
    byte = np.arange(256)
    halves = [table[byte & 15], table[byte >> 4]]
    pairs = np.stack(halves[:: -1 if is_high_first else 1], -1).view(np.uint64)[:, 0]
    packed = packed.reshape(-1).view(np.uint8)
    values = np.empty(packed.size, np.uint64)
    for begin in range(0, packed.size, _CHUNK):  # NumPy widens what it looks up to 64 bits
        end = begin + _CHUNK
        np.take(pairs, packed[begin:end], out=values[begin:end], mode="clip")
    return values.view(np.float32)


def _untiled(scales: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Scales [rows, columns] out of the tiles of 128x4 in which tensor cores take them."""
    tiles = scales.reshape(-(-rows // 128), -(-columns // 4), 32, 4, 4).transpose(0, 3, 2, 1, 4)
    return tiles.reshape(-(-rows // 128) * 128, -1)[:rows, :columns]
