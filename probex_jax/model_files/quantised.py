"""Weights that a quantiser packed or scaled: which can be read, and which tensors are its own.

8-bit floats are read, times the scale beside them: one per tensor, row or block of 128x128.
Packed integers are not read. Scales, zeros and codebooks are never layers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from probex_jax.model_files.layers import MATRIX_DTYPES
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

BLOCK = 128
_SCALE = "a quantiser's scale or zero"
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_FLOATS = ("F64", "F32", "F16", "BF16")

# The tensor of a module that holds packed weights, what must be beside it, and the method.
_METHODS = (
    ("qweight", "", "GPTQ, AWQ or SVDQuant"),
    ("q_weight", "", "EXL2"),
    ("trellis", "", "EXL3"),
    ("W_q", "", "HQQ"),
    ("codes", "codebooks", "AQLM"),
    ("Qidxs", "", "QuIP#"),
    ("B", "s", "Marlin"),
    ("weight_packed", "", "compressed-tensors"),
    ("weight._data", "", "quanto"),
    ("_weight_qdata", "", "torchao"),
    ("weight:qdata", "", "torchao"),
    ("weight", "weight.absmax", "bitsandbytes"),
    ("weight", "SCB", "bitsandbytes"),
    ("weight", "biases", "MLX"),
    ("weight", "weight_scale_2", "NVFP4"),
    ("weight", "weight_scales", "EETQ"),
)
# Unknown methods: the dtypes of packed integers, and the names of what is beside them.
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "F4")
_THEIRS = re.compile(r"scale|zero|absmax|amax|SCB|codebook|quant|\btables?\d?\Z")
# Scales to multiply by: named after the tensor, or beside a `weight`.
_AFTER = ("_scale", "_scale_inv")
_BESIDE = ("scale_weight", "scale")
# Scales of a layer's activations, not of its weights.
_ACTIVATIONS = re.compile(
    r"\A(?!.*weight).*(?:input|output|activation|act_|\b[kqv]_|prob|_in|_out)"
)
# The last part of names that are always a quantiser's.
_OWN = re.compile(
    r"(?:\A|\.)(?:weight_scales?(?:_inv|_2)?|scale_weight|(?:input|output|activation|[kqv])_scale|"
    r"scale_(?:input|output)|(?:weight|input)_zero_point|(?:weight|input)_global_scale|qzeros|"
    r"(?:nested_)?(?:absmax|quant_map)|bitsandbytes__\w+|scaled_fp8|comfy_quant|"
    r"\w+_(?:proj|weight)_scales?(?:_inv)?)\Z"
)


@dataclass(frozen=True)
class Quantised:
    """The quantised tensors of a file.

    Args:
      scales: name of each tensor that is read times a scale, to the scale's name.
      left_out: name of each other tensor that is no layer, to the reason.
      parts: the scales, and the tensors of `left_out` that are no weights.
    """

    scales: Mapping[str, str]
    left_out: Mapping[str, str]
    parts: frozenset[str]


def quantised(tensors: Mapping[str, TensorInfo]) -> Quantised:
    """Finds the quantised tensors of a file.

    Args:
      tensors: all tensors, by name.

    Example:
      >>> weight = TensorInfo("F8_E4M3", (4, 2), 0, 8)
      >>> scale, packed = TensorInfo("F32", (1,), 8, 12), TensorInfo("I32", (4, 2), 12, 44)
      >>> tensors = {"a.weight": weight, "a.weight_scale": scale, "b.qweight": packed,
      ...            "b.scales": TensorInfo("F16", (2, 2), 44, 52)}
      >>> found = quantised(tensors)
      >>> dict(found.scales)
      {'a.weight': 'a.weight_scale'}
      >>> for name, reason in found.left_out.items():
      ...     print(f"{name}: {reason}")
      b.scales: part of a quantised layer (GPTQ, AWQ or SVDQuant)
      b.qweight: quantised (GPTQ, AWQ or SVDQuant), which is not read
    """
    scales: dict[str, str] = {}
    left_out: dict[str, str] = {}
    parts: set[str] = set()
    for names in _modules(tensors).values():
        weight, method = _packed(names, tensors)
        if method:
            theirs = {n for last, n in names.items() if last != "bias" and n != weight}
            left_out |= dict.fromkeys(theirs, f"part of a quantised layer ({method})")
            left_out[weight] = f"quantised ({method}), which is not read"
            parts |= theirs
            continue
        own = {last: n for last, n in names.items() if _THEIRS.search(last) or _OWN.search(last)}
        if not own:
            continue
        if any(_is_integers(tensors[name]) for name in names.values()):
            parts |= {*own.values()}
        for last, name in names.items():
            scale, reason = _scale_of(last, names, tensors, own)
            if reason:
                left_out[name] = reason
            elif scale:
                scales[name] = scale
            if scale:
                parts.add(scale)
        parts |= {name for last, name in own.items() if _OWN.search(last)}
    left_out |= dict.fromkeys(parts - left_out.keys() - {*scales.values()}, _SCALE)
    return Quantised(scales, left_out, frozenset(parts))


def scaled(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values of a matrix times the scales beside it.

    Args:
      values: [H, W] float32.
      scale: float32; one value, [H] or [H, 1], or a value per block of 128x128.

    Example:
      >>> scaled(np.ones([2, 3], np.float32), np.array([2.0, 4.0], np.float32))[:, 0]
      array([2., 4.], dtype=float32)
    """
    height, width = values.shape
    if scale.size == 1:
        spread = scale.reshape(1, 1)
    elif scale.shape in ((height,), (height, 1)):
        spread = scale.reshape(height, 1)
    else:
        blocks = scale.repeat(BLOCK, axis=0)[:height]
        spread = blocks.repeat(BLOCK, axis=1)[:, :width]
    with np.errstate(all="ignore"):
        return values * spread


def _modules(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, str]]:
    """The tensors of each module: path to last names, such as `weight.absmax`, to full names."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        path, _, last = name.rpartition(".")
        # What belongs to a weight is named after it.
        if ".weight." in name:
            path, _, last = name.partition(".weight.")
            last = f"weight.{last}"
        elif name.startswith("weight."):
            path, last = "", name
        modules[path][last] = name
    return modules


def _is_integers(tensor: TensorInfo) -> bool:
    return tensor.dtype in _INTEGERS and len(tensor.shape) > 1


def _packed(names: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """The tensor of a module that holds packed weights, and the method; "" for none."""
    for packed, beside, method in _METHODS:
        if packed in names and (not beside or beside in names):
            dtype = tensors[names[packed]].dtype
            # 8-bit floats named `weight` are values, which can be read.
            if dtype not in _FLOATS and not (packed == "weight" and dtype in _FLOAT8):
                return names[packed], method
    return "", ""


def _scale_of(
    last: str, names: Mapping[str, str], tensors: Mapping[str, TensorInfo], own: Iterable[str]
) -> tuple[str, str]:
    """The tensor that scales another of its module, "" for none, and why that cannot be read."""
    tensor = tensors[names[last]]
    is_weight, is_float8 = last == "weight", tensor.dtype in _FLOAT8
    if last in own or not (is_weight or is_float8) or tensor.dtype not in MATRIX_DTYPES:
        return "", ""
    # `scale` may be an ordinary parameter, but beside 8-bit floats it scales them.
    known = [last + end for end in _AFTER]
    known += _BESIDE if is_float8 else _BESIDE[:1] if is_weight else ()
    found = [end for end in known if end in names]
    if is_float8 and not found:
        found = [end for end in own if not _ACTIVATIONS.search(end)]
    elif is_float8 and len(found) == 1 and _fits(tensors[names[found[0]]], tensor):
        return names[found[0]], ""
    scale = names[found[0]] if found else ""
    spelt = quoted(scale.rpartition(".")[2])
    return scale, scale and f"{tensor.dtype} with scales of an unknown quantiser, {spelt}"


def _fits(scale: TensorInfo, tensor: TensorInfo) -> bool:
    """Whether `scaled` can apply a scale to a tensor."""
    if scale.dtype not in MATRIX_DTYPES or scale.dtype in _FLOAT8 or len(tensor.shape) != 2:
        return False
    height, width = tensor.shape
    blocks = (-(-height // BLOCK), -(-width // BLOCK))
    return scale.shape in ((), (1,), (1, 1), (height,), (height, 1), blocks)


# --- shim until the branch `quantised` is merged
@dataclass(frozen=True)
class Packed:
    method: str
    layer: str
    shape: tuple
    tensors: tuple

    def values(self, raw, config):
        w, s = (raw(n).astype(np.float32) for n in self.tensors)
        return scaled(w.reshape(len(w), -1), s).reshape(w.shape)


@dataclass(frozen=True)
class Found:
    packed: dict
    left_out: dict
    parts: frozenset


def find_quantised(tensors, raw, metadata):
    q = quantised(tensors)
    packed = {n: Packed("FP8", n, tensors[n].shape, (n, s)) for n, s in q.scales.items() if n not in q.left_out}
    return Found(packed, q.left_out, q.parts)
