"""How quantisers store a weight: the table of methods, and what of each fits together.

A function `_method` looks at the tensors that a row of the table names and gives the weight's shape
and the reader of its values, or None if shapes or dtypes are not the method's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.quantised import values
from probex_jax.model_files.quantised.values import Config, Parts, block_size, quantization
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import json_object

Shape = tuple[int, ...]
Raw = Callable[[str], np.ndarray]
Reader = Callable[[Parts, Config], np.ndarray]
Fit = tuple[Shape, Reader] | None

FLOATS = ("F64", "F32", "F16", "BF16")
FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_WORDS = ("I32", "U32")
_BYTES = ("U8", "I8", "F4")
_EXPONENTS = ("U8", "F8_E8M0")
_SMALL = 4096  # bytes of a tensor that tells a shape


@dataclass(frozen=True)
class Tensors:
    """The tensors of one weight by role, and what can be asked beside them.

    Args:
      infos: role to dtype and shape.
      names: role to name.
      path: of the weight's module.
      raw: reads a tensor.
      config: reads config.json.
      is_comfy: whether ComfyUI wrote it.
    """

    infos: Mapping[str, TensorInfo]
    names: Mapping[str, str]
    path: str
    raw: Raw
    config: Config
    is_comfy: bool

    def shape(self, role: str) -> Shape:
        """The shape of a tensor; () if it is not there."""
        return self.infos[role].shape if role in self.infos else ()

    def are(self, *roles: str, dtypes: tuple[str, ...] = FLOATS, axes: int = 0) -> bool:
        """Whether tensors, where they are there, have one of the dtypes and so many axes."""
        found = [self.infos[role] for role in roles if role in self.infos]
        return all(
            info.dtype in dtypes and axes in (0, len(info.shape)) and 0 not in info.shape
            for info in found
        )

    def small(self, role: str) -> np.ndarray | None:
        """The values of a tensor that tells a shape; None if it is too large for that."""
        info = self.infos[role]
        return self.raw(self.names[role]) if info.end - info.begin <= _SMALL else None

    def json(self, role: str) -> Mapping[str, Any]:
        """The JSON in a tensor of bytes; {} if there is none."""
        is_text = role in self.infos and self.infos[role].dtype == "U8"
        data = self.small(role) if is_text else None
        try:
            return {} if data is None else json_object(data.tobytes(), role)
        except ProbexError:
            return {}


def _gptq(t: Tensors) -> Fit:
    if not (t.are("weight", "zero", dtypes=_WORDS, axes=2) and t.are("scale", axes=2)):
        return None
    (words, outputs), (groups, width) = t.shape("weight"), t.shape("scale")
    # The number of zeros tells the bits; few outputs, whose words are padded, leave the inputs.
    for bits in (4, 8, 3, 2):
        inputs = math.prod(t.shape("order")) if "order" in t.infos else words * 32 // bits
        if (
            width == outputs
            and t.shape("zero") == (groups, -(-outputs * bits // 32))
            and words == -(-inputs * bits // 32)
            and t.are("order", dtypes=("I32", "I64"))
            and ("order" in t.infos or block_size(inputs, groups))
        ):
            return (outputs, inputs), partial(values.gptq, bits=bits, inputs=inputs)
    return None


def _awq(t: Tensors) -> Fit:
    if not (t.are("weight", "zero", dtypes=_WORDS, axes=2) and t.are("scale", axes=2)):
        return None
    (height, words), (groups, width) = t.shape("weight"), t.shape("scale")
    if width == words * 8 and t.shape("zero") == (groups, words) and block_size(height, groups):
        return (width, height), values.awq
    for group in (128, 64, 32):  # AWQ's GEMV, whose groups are padded
        columns = -(-words // group) if words * 8 % group == 0 else 0
        columns = -(-columns // (128 // group)) * (128 // group)
        if columns and t.shape("scale") == (height, columns * 8) == (
            height,
            8 * t.shape("zero")[1],
        ):
            return (height, words * 8), partial(values.awq_gemv, group=group)
    return None


def _bitsandbytes(t: Tensors) -> Fit:
    state = t.json("state")
    shape, counts = state.get("shape"), [state.get("blocksize"), state.get("nested_blocksize", 1)]
    nested = "nested_absmax" in t.infos
    offset = state.get("nested_offset", 0.0)
    if not (
        isinstance(shape, list)
        and shape
        and all(type(size) is int and 0 < size < 2**31 for size in [*shape, *counts])
        and type(offset) in (int, float)
        and abs(offset) < 1e30
    ):
        return None
    size, stored = math.prod(shape), t.infos["weight"]
    blocks = -(-size // counts[0])
    if not (
        -(-size // 2) == stored.end - stored.begin
        and t.shape("map") == (16,)
        and math.prod(t.shape("absmax")) == blocks
        and t.are("map", "nested_map", "nested_absmax")
        and t.are("absmax", dtypes=("U8",) if nested else FLOATS, axes=1)
        and (not nested or t.shape("nested_absmax") == (-(-blocks // counts[1]),))
        and (not nested or t.shape("nested_map") == (256,))
    ):
        return None
    kept = {"shape": shape, "blocksize": counts[0], "nested_blocksize": counts[1]}
    return tuple(shape), partial(values.bitsandbytes, state=kept | {"nested_offset": offset})


def _llm_int8(t: Tensors) -> Fit:
    shape, scale = t.shape("weight"), t.shape("scale")
    fits = len(shape) == 2 and 0 not in shape and scale in (shape[:1], (shape[0], 1))
    return (shape, values.llm_int8) if fits and t.are("scale") else None


def _grid(shape: Shape, scale: Shape) -> Shape | None:
    """Scales as a grid over the last two axes of a weight; None if they do not fit."""
    if len(shape) < 2 or 0 in shape:
        return None
    ends = len(scale)
    while ends and scale[ends - 1] == 1:
        ends -= 1
    if scale[:ends] in ((), shape[:1]):  # one, or one for each of the first axis
        return (*scale[:ends], *(1,) * (len(shape) - ends))
    if len(scale) != len(shape) or 0 in scale:
        return None
    fits = [blocks in (1, size) for size, blocks in zip(shape[:-2], scale[:-2], strict=True)]
    fits += [block_size(*pair) > 0 for pair in zip(shape[-2:], scale[-2:], strict=True)]
    return scale if all(fits) else None


def _scaled(t: Tensors) -> Fit:
    """8 bits, floats or integers, times a grid of scales, less one of zeros."""
    shape, scale, weight = t.shape("weight"), t.shape("scale"), t.infos["weight"].dtype
    if t.is_comfy and weight in FLOAT8 and t.are("scale", dtypes=_EXPONENTS):
        fits = len(shape) == 2 and shape[1] % 32 == 0 and scale == _tiles(shape[0], shape[1] // 32)
        return (shape, values.tiled) if fits else None
    grid = _grid(shape, scale)
    # It is not known which axis of a kernel [in, out] a row of scales is for.
    if grid is None or (t.names["weight"].endswith("kernel") and math.prod(scale) > 1):
        return None
    if t.is_comfy and weight == "I8" and t.json("comfy").get("convrot", True) is not False:
        return None  # rotated
    if "zero" in t.infos and not (
        math.prod(t.shape("zero")) == math.prod(grid)
        and t.are("zero", dtypes=(*FLOATS, "I8", "U8"))
    ):
        return None
    return shape, partial(values.scaled, grid=grid)


def _tiles(rows: int, columns: int) -> Shape:
    """The shape in which tensor cores take scales [rows, columns]."""
    return -(-rows // 128) * 128, -(-columns // 4) * 4


def _of_floats(t: Tensors) -> Fit:
    """Floats that ComfyUI left in high precision, times the one scale beside them."""
    return _scaled(t) if math.prod(t.shape("scale")) == 1 else None


def _fp4(t: Tensors, divide: bool = False) -> Fit:
    """NVFP4 where a float scales the tensor, too, else MXFP4."""
    *lead, width = t.shape("weight")
    width *= 1 if t.infos["weight"].dtype == "F4" else 2
    shape, second = (*lead, width), math.prod(t.shape("second"))
    group = 16 if "second" in t.infos else 32
    scale: Shape = (*lead, width // group)
    if t.is_comfy and len(lead) == 1:
        scale = _tiles(lead[0], width // group)
    fits = (
        lead
        and 0 not in shape
        and width % group == 0
        and t.shape("scale") == scale
        and t.are("second")
        and (second == 1 or (len(lead) > 1 and second == lead[0]))
    )
    read = partial(values.fp4, group=group, divide=divide, is_comfy=t.is_comfy)
    return (shape, read) if fits else None


def _gpt_oss(t: Tensors) -> Fit:
    """Experts [E, out, groups, 16]; transformers' parameter of them is [E, in, out]."""
    *scale, half = t.shape("weight")
    if half != 16 or t.shape("scale") != (*scale,) or len(scale) < 2 or 0 in scale:
        return None
    *lead, outputs, groups = scale
    turned = t.names["weight"].endswith("_blocks")  # not so in OpenAI's own file
    ends = (groups * 32, outputs) if turned else (outputs, groups * 32)
    return (*lead, *ends), partial(values.fp4, group=32, turned=turned)


def _pack_quantized(t: Tensors) -> Fit:
    if not (t.are("weight", dtypes=_WORDS, axes=2) and t.are("scale")):
        return None
    told = t.small("shape") if t.are("shape", dtypes=("I64", "I32"), axes=1) else None
    shape = () if told is None else tuple(told.tolist())
    height, words = t.shape("weight")
    if len(shape) != 2 or shape[0] != height or not 0 < shape[1] <= words * 32:
        return None
    grid, wanted = _grid((height, shape[1]), t.shape("scale")), words * 32 // shape[1]
    for bits in (4, 8, *range(1, 8)):
        zero = (-(-height * bits // 32), grid[1] if grid else 0)
        if (
            bits in (wanted, wanted - 1, wanted - 2)
            and grid
            and -(-shape[1] * bits // 32) == words
            and t.are("zero", dtypes=_WORDS)
            and t.shape("zero") in ((), zero)
            and t.are("order", dtypes=("I32", "I64"))
            and t.shape("order") in ((), (shape[1],))
            and ("zero" not in t.infos or len(grid) == 2)
        ):
            options = {"bits": bits, "inputs": shape[1], "grid": grid}
            return shape, partial(values.pack_quantized, **options)
    return None


def _mlx(t: Tensors) -> Fit:
    *lead, words = t.shape("weight")
    *same, groups = t.shape("scale") or (0,)
    if not (t.are("weight", dtypes=_WORDS) and lead and lead == same and groups):
        return None
    bits_of_group, rest = divmod(words * 32, groups)
    if "bias" not in t.infos:
        group = {128: 32, 256: 32, 64: 16}.get(bits_of_group, 0)  # mxfp4, mxfp8, nvfp4
        if rest or not group or not t.are("scale", dtypes=("U8",)):
            return None
        return (*lead, groups * group), partial(values.mlx_floats, group=group)
    if rest or not t.are("scale", "bias") or t.shape("bias") != t.shape("scale"):
        return None
    config = t.config()
    stated = config.get("quantization") or quantization(t.config)
    stated = stated if isinstance(stated, Mapping) else {}
    of_layer = stated.get(t.path)
    stated = of_layer if isinstance(of_layer, Mapping) else stated
    fitting = [
        (group, bits)
        for group in (32, 64, 128)
        for bits in (2, 3, 4, 5, 6, 8)
        if group * bits == bits_of_group
        and stated.get("bits", bits) == bits
        and stated.get("group_size", group) == group
    ]
    if len(fitting) != 1:
        return None
    group, bits = fitting[0]
    return (*lead, groups * group), partial(values.mlx, bits=bits)


def _hqq(t: Tensors) -> Fit:
    told = t.small("shape") if t.are("shape", dtypes=("I64", "I32"), axes=1) else None
    shape = () if told is None else tuple(told.tolist())
    stored, weight = t.infos["weight"], t.shape("weight")
    if len(shape) != 2 or min(shape) < 1 or len(weight) != 2 or 0 in weight:
        return None
    size, items = math.prod(shape), stored.end - stored.begin
    bits = 3 if stored.dtype == "I32" else 8 * items // size
    columns = weight[1] if bits == 3 else items // weight[0]
    rows, rest = divmod(size, columns)
    a_word = 10 if bits == 3 else 8 // bits if bits in (1, 2, 4, 8) else 0
    if (
        rest
        or a_word == 0
        or weight[0] != -(-rows // a_word)
        or not t.are("scale", "zero")
        or t.shape("scale") not in ((rows, 1), (1, columns))
        or t.shape("zero") not in (t.shape("scale"), (), (1,))
    ):
        return None
    return shape, partial(values.hqq, bits=bits, rows=rows)


class Format(NamedTuple):
    """One way to store a weight.

    Args:
      method: its name.
      weight: last part of the name of what is packed; * for any.
      parts: role to the last part of the name, or several that mean the same; a role with ? may be
        missing.
      fit: tells shape and reader; None for a method that is not read.
      dtypes: of what is packed; () for any.
      scales: the dtypes of the role "scale"; () for any.
      layer: last part of the weight's name; the stem where `weight` has a *.
    """

    method: str
    weight: str
    parts: Mapping[str, str]
    fit: Callable[[Tensors], Fit] | None = None
    dtypes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    layer: str = "weight"


_EIGHT = ("I8", *FLOAT8)
_ZEROS = {"scale": "scales", "zero": "qzeros"}
_NESTED = {
    "absmax": "weight.absmax",
    "map": "weight.quant_map",
    "nested_absmax?": "weight.nested_absmax",
    "nested_map?": "weight.nested_quant_map",
}
_STATE = "weight.quant_state.bitsandbytes__"
_INT8 = {"scale": "SCB", "format?": "weight_format"}
_COMPRESSED = {
    "scale": "weight_scale",
    "shape": "weight_shape",
    "zero?": "weight_zero_point",
    "order?": "weight_g_idx",
}
_DIVIDED = {"scale": "weight_scale", "second": "weight_global_scale"}
_MULTIPLIED = {"scale": "*_scale *_weight_scale", "second": "*_scale_2 *_weight_scale_2"}
_TORCHAO = {"scale": "_weight_scale", "zero?": "_weight_zero_point"}
_INTEGERS = {
    "scale": "weight_scale scale_weight",
    "zero?": "weight_zero_point",
    "comfy?": "comfy_quant",
}
# The names of scales to multiply by.
_SCALES = "*_scale *_scale_inv *.scale *_weight_scale scale_weight qscale_weight scale"

FORMATS = (
    Format("GPTQ", "qweight", _ZEROS | {"order?": "g_idx"}, _gptq, _WORDS, FLOATS),
    Format("AWQ", "qweight", _ZEROS, _awq, _WORDS, FLOATS),
    Format("SVDQuant", "qweight", {"scale": "wscales"}),
    Format("GPTQ or AWQ", "qweight", {}),
    Format("EXL2", "q_weight", {}),
    Format("EXL3", "trellis", {}),
    Format("HQQ", "W_q", {"scale": "scale", "zero": "zero", "shape": "shape"}, _hqq),
    Format("HQQ", "W_q", {}),
    Format("AQLM", "codes", {"table": "codebooks"}),
    Format("QuIP#", "Qidxs", {}),
    Format("VPTQ", "indices", {"table": "centroids.weight"}),
    Format("SpQR", "dense_weights", {}),
    Format("Marlin", "B", {"scale": "s"}),
    Format("bitsandbytes NF4", "weight", _NESTED | {"state": f"{_STATE}nf4"}, _bitsandbytes),
    Format("bitsandbytes FP4", "weight", _NESTED | {"state": f"{_STATE}fp4"}, _bitsandbytes),
    Format("bitsandbytes", "weight", {"absmax": "weight.absmax"}, None, _BYTES),
    Format("bitsandbytes", "weight", _INT8, _llm_int8, ("I8",), FLOATS),
    Format("compressed-tensors", "weight_packed", _COMPRESSED, _pack_quantized, _WORDS, FLOATS),
    Format("NVFP4", "weight_packed", _DIVIDED, partial(_fp4, divide=True), ("U8",), ("F8_E4M3",)),
    Format("MXFP4", "weight_packed", {"scale": "weight_scale"}, _fp4, ("U8",), _EXPONENTS),
    Format("compressed-tensors", "weight_packed", {}),
    Format("quanto", "weight._data", {"scale": "weight._scale"}, _scaled, _EIGHT, FLOATS),
    Format("quanto", "weight._data", {}),
    Format("quanto", "weight._data._data", {}),
    Format("torchao", "_weight_qdata", _TORCHAO, _scaled, _EIGHT, FLOATS),
    Format("torchao", "_weight_qdata", {}),
    Format("torchao", "weight:qdata", {}),
    Format("MLX", "weight", {"scale": "scales", "bias": "biases qbiases"}, _mlx, _WORDS, FLOATS),
    Format("MLX", "weight", {"scale": "scales"}, _mlx, ("U32",), ("U8",)),
    Format("HIGGS", "weight", {"table": "tables2"}, None, ("I16",)),
    Format("EETQ", "weight", {"scale": "weight_scales"}, None, ("I8",)),
    Format("NVFP4", "*", _MULTIPLIED, _fp4, _BYTES, ("F8_E4M3",)),
    Format("MXFP4", "*", {"scale": _SCALES}, _fp4, _BYTES, _EXPONENTS),
    Format("MXFP4", "*_blocks", {"scale": "*_scales"}, _gpt_oss, ("U8",), _EXPONENTS),
    Format("MXFP4", "blocks", {"scale": "scales"}, _gpt_oss, ("U8",), _EXPONENTS, ""),
    Format("BitNet", "weight", {"scale": "weight_scale"}, None, ("U8",), FLOATS),
    Format("FP8", "*", {"scale": _SCALES}, _scaled, FLOAT8, (*FLOATS, *_EXPONENTS)),
    Format("FP8", "weight", {"scale": "scale_weight"}, _of_floats, FLOATS, FLOATS),
    Format("8-bit integers", "weight", _INTEGERS, _scaled, ("I8",), FLOATS),
)
