"""Finds the quantised weights of a file: which can be read, and which tensors are a quantiser's."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.quantised.formats import (
    FLOAT8,
    FLOATS,
    FORMATS,
    ROLES,
    Format,
    Raw,
    Reader,
    Tensors,
)
from probex_jax.model_files.quantised.values import Config
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

_SCALE = "a quantiser's scale or zero"
# Unknown methods: the dtypes of packed integers, and the names of what is beside them.
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "F4")
_THEIRS = re.compile(r"scale|zero|absmax|amax|SCB|codebook|quant|\btables?\d?\Z")
# Scales of a layer's activations, not of its weights.
_ACTIVATIONS = re.compile(
    r"\A(?!.*weight).*(?:input|output|activation|act_|\b[kqv]_|prob|_in|_out)|\Aqscale_act\Z"
)
# The last part of names that are always a quantiser's.
_OWN = re.compile(
    r"(?:\A|\.)(?:weight_scales?(?:_inv|_2)?|q?scale_weight|(?:input|output|activation|[kqv])_scale|"
    r"scale_(?:input|output)|qscale_act|(?:weight|input)_zero_point|(?:weight|input)_global_scale|"
    r"qzeros|(?:nested_)?(?:absmax|quant_map)|bitsandbytes__\w+|scaled_fp8|comfy_quant|"
    r"\w+_(?:proj|weight)_scales?(?:_inv|_2)?)\Z"
)
# What belongs to a weight is named after it.
_BELOW = re.compile(r"(?:\A|\.)(weight\..+|(?:res_)?centroids\.weight)\Z")
_OF_WEIGHTS = ("weight", "scale_weight")
# What quantised activations would be multiplied by: the weight alone is not the layer.
_FOLDED = {"pre_quant_scale", "_weight_act_pre_scale"}
_MARKERS = ("scaled_fp8", "comfy_quant")
_COMFY = "_quantization_metadata"  # in the header, of ComfyUI's first files
_BY_NAME: dict[str, list[Format]] = defaultdict(list)
for _format in FORMATS:
    _BY_NAME[_format.weight].append(_format)
_BY_STEM = [_format for _format in FORMATS if "*" in _format.weight]
_OF_STEMS = {dtype for _format in _BY_STEM for dtype in _format.dtypes}


@dataclass(frozen=True)
class Packed:
    """A weight that is computed from several stored tensors.

    Args:
      method: of the quantiser.
      layer: the weight's name in an unquantised copy.
      shape: of the weight there.
      tensors: names of all tensors that `values` reads.
    """

    method: str
    layer: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    _roles: tuple[str, ...] = field(repr=False)
    _read: Reader = field(repr=False)

    def values(self, raw: Raw, config: Config) -> np.ndarray:
        """The weight, dequantised.

        Args:
          raw: reads a tensor in its stored dtype and shape.
          config: reads the model's config.json, if something is told nowhere else.

        Returns:
          float32 of `shape`, contiguous; it may hold NaN or infinity.

        Raises:
          ProbexError: if what is stored contradicts itself, or as `raw` and `config`.
        """
        parts = {role: raw(name) for role, name in zip(self._roles, self.tensors, strict=True)}
        try:
            with np.errstate(all="ignore"):  # the caller finds what became infinite
                values = self._read(parts, config)
        except ProbexError as error:
            raise ProbexError(f"layer {quoted(self.layer)} ({self.method}): {error}") from error
        return np.ascontiguousarray(values.reshape(self.shape))


@dataclass(frozen=True)
class Quantised:
    """The quantised tensors of a file.

    Args:
      packed: the weights that can be read, by their layer's name.
      left_out: name of each other tensor that is no layer, to the reason.
      parts: names of a quantiser's own tensors: all but weights in their own shape.
    """

    packed: Mapping[str, Packed]
    left_out: Mapping[str, str]
    parts: frozenset[str]


def find_quantised(
    tensors: Mapping[str, TensorInfo],
    raw: Raw,
    metadata: Mapping[str, str],
    config: Config = dict,
) -> Quantised:
    """Finds the quantised tensors of a file.

    Args:
      tensors: all tensors, by name.
      raw: reads a tensor in its stored dtype and shape; asked for a few that tell shapes.
      metadata: the header's free text.
      config: reads the model's config.json; asked if it alone tells a shape.

    Example:
      >>> weight = TensorInfo("F8_E4M3", (4, 2), 0, 8)
      >>> scale, packed = TensorInfo("F32", (1,), 8, 12), TensorInfo("I32", (4, 2), 12, 44)
      >>> tensors = {"a.weight": weight, "a.weight_scale": scale, "b.q_weight": packed,
      ...            "b.q_scale": TensorInfo("F16", (2, 2), 44, 52)}
      >>> stored = {"a.weight": np.ones([4, 2]), "a.weight_scale": np.full([1], 0.5)}
      >>> found = find_quantised(tensors, stored.__getitem__, {})
      >>> found.packed["a.weight"].values(stored.__getitem__, dict)[0]
      array([0.5, 0.5], dtype=float32)
      >>> for name, reason in found.left_out.items():
      ...     print(f"{name}: {reason}")
      b.q_weight: quantised (EXL2), which is not read
      b.q_scale: part of a quantised layer (EXL2)
    """
    packed: dict[str, Packed] = {}
    left_out: dict[str, str] = {}
    parts: set[str] = set()
    # Where nothing is packed, `q_scale` and the like are parameters of a model's own.
    is_packed = any(tensor.dtype not in FLOATS for tensor in tensors.values())
    for path, names in _modules(tensors).items():
        own = {last: n for last, n in names.items() if _THEIRS.search(last) or _OWN.search(last)}
        if not is_packed:
            own = {last: n for last, n in own.items() if last.startswith(_OF_WEIGHTS)}
        if not own and all(tensors[name].dtype in FLOATS for name in names.values()):
            continue
        has_integers = any(_is_integers(tensors[name]) for name in names.values())
        weights: set[str] = set()
        reason = ""
        is_whole = False  # whether all of the module is the quantiser's
        for last, name in names.items():
            matched = [*_matching(last, names, tensors)] if last not in own else []
            for format, layer, roles in matched:
                infos = {role: tensors[part] for role, part in roles.items()}
                is_comfy = "comfy_quant" in names or _COMFY in metadata
                at = Tensors(infos, roles, path, raw, config, is_comfy)
                # Another factor of the weight, whatever it is.
                more = [n for end, n in own.items() if layer and end.startswith(layer)]
                is_known = not _FOLDED & names.keys() and {*more} <= {*roles.values()}
                fit = format.fit(at) if format.fit and is_known else None
                layer = f"{path}.{layer}" if path and layer else path or layer
                if fit and layer not in packed and (layer not in tensors or layer == name):
                    read = {role: part for role, part in roles.items() if role != "comfy"}
                    packed[layer] = Packed(
                        format.method, layer, fit[0], (*read.values(),), (*read,), fit[1]
                    )
                    parts |= {*read.values()} - {layer}
                    break
            else:
                if matched:
                    left_out[name] = f"quantised ({_methods(matched)}), which is not read"
                elif unknown := _unknown_scale(last, tensors[name], own):
                    left_out[name] = f"{tensors[name].dtype} with scales of an unknown quantiser"
                    parts.add(unknown)
            if matched:
                weights.add(name)
                reason = f"part of a quantised layer ({_methods(matched)})"
                is_whole |= matched[0][0].weight not in ("weight", "*", "*_blocks")
                parts |= {*matched[0][2].values()} - weights
        for last, name in names.items():
            is_own = last in own and (has_integers or _OWN.search(last))
            is_own = is_own or last.startswith("weight.")
            if name not in weights and (is_own or (is_whole and last != "bias")):
                parts.add(name)
                left_out[name] = reason or _SCALE
    left_out |= dict.fromkeys(parts - left_out.keys(), _SCALE)
    for found in packed.values():
        for name in found.tensors:
            left_out.pop(name, None)
    return Quantised(packed, left_out, frozenset(parts))


def _modules(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, str]]:
    """The tensors of each module: path to last names, such as `weight.absmax`, to full names."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        below = _BELOW.search(name) if "weight." in name or "centroids." in name else None
        path, _, last = (name[: below.start()], "", below[1]) if below else name.rpartition(".")
        modules[path][last] = name
    return modules


def _is_integers(tensor: TensorInfo) -> bool:
    return tensor.dtype in _INTEGERS and len(tensor.shape) > 1


def _matching(
    last: str, names: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> Iterator[tuple[Format, str, dict[str, str]]]:
    """The formats that names and dtypes speak for, with the layer's last name and the roles."""
    dtype = tensors[names[last]].dtype
    for format in (*_BY_NAME.get(last, ()), *(_BY_STEM if dtype in _OF_STEMS else ())):
        _, star, end = format.weight.partition("*")
        if (star and not last.endswith(end)) or (format.dtypes and dtype not in format.dtypes):
            continue
        if (not format.fit and dtype in FLOATS) or not tensors[names[last]].shape:
            continue  # layers of a model's own may have such names
        stem = last.removesuffix(end) if star else format.layer
        roles = {"weight": names[last]}
        for role, spelt in format.parts.items():
            found = [n for n in dict.fromkeys(spelt.replace("*", stem).split()) if n in names]
            if len(found) == 1:
                roles[role.rstrip("?")] = names[found[0]]
            elif not role.endswith("?"):
                break
        else:
            allowed = {**ROLES, "weight": (dtype,), "scale": format.scales}
            if all(
                tensors[part].dtype in allowed.get(role, FLOATS) and 0 not in tensors[part].shape
                for role, part in roles.items()
            ):
                yield format, stem, roles


def _methods(matched: Sequence[tuple[Format, str, dict[str, str]]]) -> str:
    """The methods that a weight may be of; those that are read, if there are such."""
    names = [format.method for format, _, _ in matched if format.fit] or [matched[0][0].method]
    return " or ".join(dict.fromkeys(names))


def _unknown_scale(last: str, tensor: TensorInfo, own: Mapping[str, str]) -> str:
    """The tensor that scales floats in a way that no format has; "" for none."""
    if last in own or tensor.dtype not in (*FLOATS, *FLOAT8):
        return ""
    if tensor.dtype in FLOAT8:
        own = {end: name for end, name in own.items() if not _ACTIVATIONS.search(end)}
        return next((name for end, name in own.items() if end not in _MARKERS), "")
    known = ("weight_scale", "weight_scale_inv", "scale_weight") if last == "weight" else ()
    return next((own[end] for end in known if end in own), "")
