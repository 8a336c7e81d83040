"""Finds weights that are not stored as [out, in, k...], and the order of their axes.

PyTorch stores layers as [out, in, k...] (`flax_names` makes that of what JAX stores). transformers'
Conv1D, in GPT-2 and its kin, stores [in, out] under names that other models use for [out, in];
there the shapes decide.
"""

import re
from collections.abc import Mapping

from probex_jax.model_files.layers import are_experts
from probex_jax.model_files.safetensors_header import TensorInfo

_CONV1D = ("c_attn", "c_fc", "c_proj", "q_attn")
_CONV1D_ENDS = tuple(f"{module}.weight" for module in _CONV1D)
# The stacked matrices of experts that widen to a gate and a value, and those that narrow again.
_WIDENING, _NARROWING = "gate_up_proj", "down_proj"

_ANY = "*"


def axes_of(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...] | str]:
    """Finds the tensors that are not stored as [out, in, k...].

    Args:
      tensors: possible layers, by name.

    Returns:
      Name to the order in which to take the axes, or to the reason why it is unknown.

    Example:
      >>> axes_of({"transformer.h.0.attn.c_attn.weight": TensorInfo("F32", (4, 12))})
      {'transformer.h.0.attn.c_attn.weight': (1, 0)}
    """
    conv1d = _models_of_conv1d(tensors)
    found: dict[str, tuple[int, ...] | str] = {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if len(shape) == 2 and _conv1d(name):
            turned = conv1d.get(_model(name), conv1d.get(_ANY))
            if turned is None:
                found[name] = "a Conv1D or a linear layer: the shapes do not tell which"
            elif turned:
                found[name] = (1, 0)
    return found


def stacks(tensors: Mapping[str, TensorInfo]) -> dict[str, bool]:
    """Finds the tensors [E, a, b] that are a matrix for each of E experts.

    Args:
      tensors: possible layers, by name.

    Returns:
      Name to whether the matrices are [in, out]. Of one that widens to a gate and a value beside
      one that narrows again, the shapes tell; nothing tells of others, taken as [out, in].

    Example:
      >>> up = TensorInfo("F32", (8, 16, 64), 0, 32768)
      >>> down = TensorInfo("F32", (8, 32, 16), 32768, 49152)
      >>> stacks({"experts.gate_up_proj": up, "experts.down_proj": down})
      {'experts.gate_up_proj': True, 'experts.down_proj': True}
    """
    found = {}
    for name, tensor in tensors.items():
        if len(tensor.shape) == 3 and tensor.shape[0] > 1 and are_experts(name):
            wide = tensors.get(name.replace(_NARROWING, _WIDENING), tensor).shape
            narrow = tensors.get(name.replace(_WIDENING, _NARROWING), tensor).shape
            found[name] = wide[1:] == (narrow[2], 2 * narrow[1])
    return found


def _conv1d(name: str) -> str:
    """The module of a weight that may be a Conv1D's; "" for others."""
    if not name.endswith(_CONV1D_ENDS):
        return ""
    module = name.split(".")[-2]
    return module if module in _CONV1D else ""


def _model(name: str) -> str:
    """The part of a name before the number of a block."""
    number = re.search(r"\d", name)
    return name[: number.start()] if number else ""


def _is_turned(module: str, name: str, shape: tuple[int, ...]) -> bool | None:
    """Whether a weight is [in, out], by its own shape; None if that does not tell."""
    rows, columns = shape
    if module == "c_attn" and 3 * min(shape) == max(shape):  # query, key and value
        return rows < columns
    if ".mlp." in f".{name}" and max(shape) % min(shape) == 0 and rows != columns:
        if module == "c_fc":  # which widens
            return rows < columns
        if module == "c_proj":  # which narrows
            return rows > columns
    return None


def _models_of_conv1d(tensors: Mapping[str, TensorInfo]) -> dict[str, bool]:
    """Whether weights are [in, out], for each model in a file and for all, if shapes agree."""
    said: dict[str, set[bool]] = {}
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and (module := _conv1d(name)):
            turned = _is_turned(module, name, tensor.shape)
            if turned is not None:
                said.setdefault(_model(name), set()).add(turned)
                said.setdefault(_ANY, set()).add(turned)
    return {model: next(iter(turned)) for model, turned in said.items() if len(turned) == 1}
