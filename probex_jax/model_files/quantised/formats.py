"""How quantisers store a weight: the table of formats, and which shapes belong together.

A row of the table names the tensors of a weight. Its function tells from their shapes the weight's
own shape and the reader of its values; None if they are not as the method stores them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.quantised import values
from probex_jax.model_files.quantised.values import Config, Parts, block_size, grid_of, quantization
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
_EIGHT = ("I8", *FLOAT8)
_EXPONENTS = ("U8", "F8_E8M0")
_INDICES = ("I32", "I64")
_SMALL = 4096  # bytes of a tensor that tells a shape


@dataclass(frozen=True)
class Tensors:
    """The tensors of one weight by their role, and what stands beside them.

    Args:
      infos: role to dtype and shape.
      names: role to name.
      path: of the module.
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

    def __getitem__(self, role: str) -> Shape:
        return self.infos[role].shape

    def get(self, role: str) -> Shape | None:
        found = self.infos.get(role)
        return found.shape if found else None

    def __contains__(self, role: str) -> bool:
        return role in self.infos

    def bytes(self, role: str) -> int:
        return self.infos[role].end - self.infos[role].begin

    def sizes(self, role: str) -> list[int]:
        """The two numbers of a tensor that holds a shape; [] if it holds no such thing."""
        found = self.raw(self.names[role]).tolist() if self[role] == (2,) else []
        return found if all(0 < size < 2**31 for size in found) else []

    def json(self, role: str) -> Mapping[str, Any]:
        """The JSON in a tensor of bytes; {} if it holds none."""
        if role not in self or self.bytes(role) > _SMALL:
            return {}
        try:
            return json_object(self.raw(self.names[role]).tobytes(), role)
        except ProbexError:
            return {}


def _gptq(t: Tensors) -> Fit:
    match t["weight"], t["scale"]:
        case (words, outputs), (groups, width) if outputs == width:
            # The zeros tell the bits, with the inputs where outputs are few and words are padded.
            for bits in (4, 8, 3, 2):
                inputs = math.prod(t["order"]) if "order" in t else words * 32 // bits
                if (
                    t["zeros"] == (groups, -(-outputs * bits // 32))
                    and words == -(-inputs * bits // 32)
                    and (t["order"] == (inputs,) if "order" in t else block_size(inputs, groups))
                ):
                    return (outputs, inputs), partial(values.gptq, bits=bits, inputs=inputs)
    return None


def _awq(t: Tensors) -> Fit:
    match t["weight"], t["scale"]:
        case (height, words), (groups, width) if (
            t["zeros"] == (groups, words) == (groups, width / 8)
        ):
            return ((width, height), values.awq) if block_size(height, groups) else None
        case (height, words), (same, width) if same == height and t["zeros"] == (height, width / 8):
            for group in (128, 64, 32):  # the version for vectors, which pads the groups
                groups, rest = divmod(words * 8, group)
                if not rest and width == -(-groups // (1024 // group)) * (1024 // group):
                    return (height, words * 8), partial(values.awq_gemv, groups=groups)
    return None


def _bitsandbytes(t: Tensors) -> Fit:
    state: dict[str, Any] = {"nested_blocksize": 1, "nested_offset": 0.0, **t.json("state")}
    shape, nested = state.get("shape"), state["nested_blocksize"]
    size: Any = state.get("blocksize")
    if not (
        isinstance(shape, list)
        and 0 < len(shape) < 9
        and all(type(n) is int and 0 < n < 2**31 for n in (*shape, size, nested))
        and type(state["nested_offset"]) is float
    ):
        return None
    count = math.prod(shape)
    blocks = -(-count // size)
    second = (-(-blocks // nested),) if "nested_absmax" in t else None
    fits = (
        t.bytes("weight") == -(-count // 2)
        and t["map"] == (16,)
        and t["absmax"] == (blocks,)
        and t.get("nested_absmax") == second
        and t.get("nested_map") == (second and (256,))
        and (t.infos["absmax"].dtype == "U8") == bool(second)
    )
    read = partial(values.bitsandbytes, state={**state, "count": count, "size": size})
    return (tuple(shape), read) if fits else None


def _llm_int8(t: Tensors) -> Fit:
    shape = t["weight"]
    fits = len(shape) == 2 and t["scale"] in (shape[:1], (shape[0], 1))
    return (shape, values.llm_int8) if fits else None


def _tiles(rows: int, columns: int) -> Shape:
    """The shape in which tensor cores take scales [rows, columns]."""
    return -(-rows // 128) * 128, -(-columns // 4) * 4


def _scaled(t: Tensors) -> Fit:
    """8 bits, floats or integers, less a grid of zeros, times one of scales."""
    shape, scale, dtype = t["weight"], t["scale"], t.infos["weight"].dtype
    if t.is_comfy and t.infos["scale"].dtype in _EXPONENTS:
        fits = len(shape) == 2 and shape[1] % 32 == 0 and scale == _tiles(shape[0], shape[1] // 32)
        return (shape, values.tiled) if fits else None
    stated = t.json("comfy") if dtype == "I8" and t.is_comfy else {"format": "int8_tensorwise"}
    if stated.get("format") != "int8_tensorwise" or stated.get("convrot"):
        return None  # packed or rotated
    grid = grid_of(shape, scale)
    # It is not known which axis of a kernel [in, out] a row of scales is for.
    is_clear = not t.names["weight"].endswith("kernel") or math.prod(scale) == 1
    if grid is None or not is_clear or ("zero" in t and math.prod(t["zero"]) != math.prod(grid)):
        return None
    return shape, values.scaled


def _of_floats(t: Tensors) -> Fit:
    """Floats that ComfyUI did not quantise, times the one scale beside them."""
    return _scaled(t) if math.prod(t["scale"]) == 1 else None


def _fp4(t: Tensors, divide: bool = False) -> Fit:
    """NVFP4 where a float scales the tensor, too, else MXFP4."""
    *lead, width = t["weight"]
    shape = (*lead, width if t.infos["weight"].dtype == "F4" else 2 * width)
    groups, rest = divmod(shape[-1], 16 if "second" in t else 32)
    is_tiled = t.is_comfy and "second" in t and len(lead) == 1
    fits = (
        lead
        and not rest
        and t["scale"] == (_tiles(lead[0], groups) if is_tiled else (*lead, groups))
        and math.prod(t.get("second") or ()) in (1, lead[0] if len(lead) > 1 else 1)
    )
    read = partial(values.fp4, divide=divide, is_comfy=is_tiled)
    return (shape, read) if fits else None


def _experts(t: Tensors) -> Fit:
    """gpt-oss's [E, out, groups, 16], which transformers dequantises to [E, in, out]."""
    match t["weight"]:
        case (count, outputs, groups, 16) if t["scale"] == (count, outputs, groups):
            if t.names["weight"].endswith("_blocks"):
                return (count, groups * 32, outputs), values.experts
            return (count, outputs, groups * 32), values.fp4
    return None


def _compressed(t: Tensors) -> Fit:
    match t["weight"], t.sizes("shape"):
        case (height, words), [outputs, inputs] if height == outputs:
            grid = grid_of((outputs, inputs), t["scale"])
            for bits in (4, 8, 2, 3, 5, 6, 7, 1):
                zeros = (-(-outputs * bits // 32), grid[1] if grid else 0)
                if (
                    grid
                    and words == -(-inputs * bits // 32)
                    and t.get("zeros") in (None, zeros)
                    and t.get("order") in (None, (inputs,))
                ):
                    read = partial(values.compressed, bits=bits, inputs=inputs, grid=grid)
                    return (outputs, inputs), read
    return None


def _mlx(t: Tensors) -> Fit:
    *lead, words = t["weight"]
    *same, groups = t["scale"] or (0,)
    of_group, rest = divmod(words * 32, groups or 1)  # bits
    if rest or not lead or lead != same or not groups:
        return None
    if "bias" not in t:  # mxfp4, mxfp8, nvfp4
        group, bits = {128: (32, 4), 256: (32, 8), 64: (16, 4)}.get(of_group, (0, 0))
        read = partial(values.mlx_floats, group=group, bits=bits)
        return ((*lead, groups * group), read) if group else None
    try:
        stated = t.config().get("quantization") or quantization(t.config)
    except ProbexError:  # a file can be opened beside a damaged config
        stated = {}
    stated = stated if isinstance(stated, Mapping) else {}
    stated = found if isinstance(found := stated.get(t.path), Mapping) else stated
    fitting = [
        (group, bits)
        for group in (32, 64, 128)
        for bits in (2, 3, 4, 5, 6, 8)
        if group * bits == of_group
        and stated.get("bits", bits) == bits
        and stated.get("group_size", group) == group
    ]
    if len(fitting) != 1 or t["bias"] != t["scale"]:
        return None
    [(group, bits)] = fitting
    return (*lead, groups * group), partial(values.mlx, bits=bits)


def _hqq(t: Tensors) -> Fit:
    match t["weight"], t.sizes("shape"):
        case (words, _), [outputs, inputs]:
            size, stored = outputs * inputs, t.bytes("weight")
            bits = (
                3 if t.infos["weight"].dtype == "I32" or 8 * stored % size else 8 * stored // size
            )
            rows, rest = divmod(size, stored // words // (4 if bits == 3 else 1) or 1)
            per_word = {1: 8, 2: 4, 3: 10, 4: 2, 8: 1}.get(bits, 0)
            fits = (
                not rest
                and per_word
                and words == -(-rows // per_word)
                and t["scale"] in ((rows, 1), (1, size // rows))
                and t["zero"] in (t["scale"], (), (1,))
            )
            return ((outputs, inputs), partial(values.hqq, bits=bits, rows=rows)) if fits else None
    return None


class Format(NamedTuple):
    """One way to store a weight.

    Args:
      method: its name.
      weight: last part of the name of what is packed, or its end after a *.
      parts: role to the last part of the name, or several that mean the same; * is as in `weight`,
        and a role with ? may be missing.
      fit: tells shape and reader; None for a method that is not read.
      dtypes: of what is packed; () for any.
      scales: the dtypes of the role "scale".
      layer: last part of the weight's name, if `weight` has no *.
    """

    method: str
    weight: str
    parts: Mapping[str, str]
    fit: Callable[[Tensors], Fit] | None = None
    dtypes: tuple[str, ...] = ()
    scales: tuple[str, ...] = FLOATS
    layer: str = "weight"


# The dtypes of roles other than "scale"; of those not named here, floats.
ROLES: Mapping[str, tuple[str, ...]] = {
    "zeros": _WORDS,
    "zero": (*FLOATS, "I8", "U8"),
    "order": _INDICES,
    "shape": _INDICES,
    "absmax": (*FLOATS, "U8"),
    **dict.fromkeys(("state", "comfy"), ("U8",)),
    "format": ("U8", "I8", "I32", "I64"),
}
_ZEROS = {"scale": "scales", "zeros": "qzeros"}
_BLOCKS = {"absmax": "weight.absmax", "map": "weight.quant_map"}
_NESTED = {"nested_absmax?": "weight.nested_absmax", "nested_map?": "weight.nested_quant_map"}
_NF4 = _BLOCKS | _NESTED | {"state": "weight.quant_state.bitsandbytes__nf4"}
_FP4 = _BLOCKS | _NESTED | {"state": "weight.quant_state.bitsandbytes__fp4"}
_SCB = {"scale": "SCB", "format?": "weight_format"}
_SHAPED = {"scale": "weight_scale", "shape": "weight_shape"}
_GROUPS = {"zeros?": "weight_zero_point", "order?": "weight_g_idx"}
_DIVIDED = {"scale": "weight_scale", "second": "weight_global_scale"}
_TWICE = {"scale": "*_scale *_weight_scale", "second": "*_scale_2 *_weight_scale_2"}
_ONCE = {
    "scale": "*_scale *_scale_inv *.scale *_weight_scale scale_weight qscale_weight scale",
    "comfy?": "comfy_quant",
}
_INT8 = {
    "scale": "weight_scale scale_weight",
    "zero?": "weight_zero_point",
    "comfy?": "comfy_quant",
}
_TORCHAO = {"scale": "_weight_scale", "zero?": "_weight_zero_point"}
_MLX = {"scale": "scales", "bias": "biases qbiases"}
_HQQ = {"scale": "scale", "zero": "zero", "shape": "shape"}

# fmt: off
FORMATS = (
    Format("GPTQ", "qweight", _ZEROS | {"order?": "g_idx"}, _gptq, _WORDS),
    Format("AWQ", "qweight", _ZEROS, _awq, _WORDS),
    Format("SVDQuant", "qweight", {"scale": "wscales"}),
    Format("FP-Quant", "qweight", {"table": "forward_hadamard_matrix"}),
    Format("GPTQ or AWQ", "qweight", {}),
    Format("EXL2", "q_weight", {}),
    Format("EXL3", "trellis", {}),
    Format("HQQ", "W_q", _HQQ, _hqq, ("U8", "I32", *FLOATS)),
    Format("HQQ", "W_q", {}),
    Format("AQLM", "codes", {"table": "codebooks"}),
    Format("QuIP#", "Qidxs", {}),
    Format("VPTQ", "indices", {"table": "centroids.weight"}),
    Format("SpQR", "dense_weights", {}),
    Format("Marlin", "B", {"scale": "s"}),
    Format("bitsandbytes NF4", "weight", _NF4, _bitsandbytes),
    Format("bitsandbytes FP4", "weight", _FP4, _bitsandbytes),
    Format("bitsandbytes", "weight", {"absmax": "weight.absmax"}, None, _BYTES),
    Format("bitsandbytes", "weight", _SCB, _llm_int8, ("I8",)),
    Format("compressed-tensors", "weight_packed", _SHAPED | _GROUPS, _compressed, _WORDS),
    Format("NVFP4", "weight_packed", _DIVIDED, partial(_fp4, divide=True), ("U8",), ("F8_E4M3",)),
    Format("MXFP4", "weight_packed", {"scale": "weight_scale"}, _fp4, ("U8",), _EXPONENTS),
    Format("compressed-tensors", "weight_packed", {}),
    Format("quanto", "weight._data", {"scale": "weight._scale"}, _scaled, _EIGHT),
    Format("quanto", "weight._data", {}),
    Format("quanto", "weight._data._data", {}),
    Format("torchao", "_weight_qdata", _TORCHAO, _scaled, _EIGHT),
    Format("torchao", "_weight_qdata", {}),
    Format("torchao", "weight:qdata", {}),
    Format("MLX", "weight", _MLX, _mlx, _WORDS),
    Format("MLX", "weight", {"scale": "scales"}, _mlx, ("U32",), ("U8",)),
    Format("HIGGS", "weight", {"table": "tables2"}, None, ("I16",)),
    Format("EETQ", "weight", {"scale": "weight_scales"}, None, ("I8",)),
    Format("NVFP4", "*", _TWICE, _fp4, _BYTES, ("F8_E4M3",)),
    Format("MXFP4", "*", _ONCE, _fp4, _BYTES, _EXPONENTS),
    Format("MXFP4", "*_blocks", {"scale": "*_scales"}, _experts, ("U8",), _EXPONENTS),
    Format("MXFP4", "blocks", {"scale": "scales"}, _experts, ("U8",), _EXPONENTS, ""),
    Format("BitNet", "weight", {"scale": "weight_scale"}, None, ("U8",)),
    Format("FP8", "*", _ONCE, _scaled, FLOAT8, (*FLOATS, *_EXPONENTS)),
    Format("FP8", "weight", {"scale": "scale_weight"}, _of_floats, FLOATS),
    Format("8-bit integers", "weight", _INT8, _scaled, ("I8",)),
)
