"""Pairs the two factors of LoRA updates.

Three dialects are read; an update is scale · up @ down.

    diffusers  <layer>.lora.up.weight, .lora.down.weight; <layer>.processor.to_q_lora.up.weight
    PEFT       base_model.model.<layer>.lora_B.weight, .lora_A.weight; or .lora_B.default.weight
    kohya      lora_unet_<layer>.lora_up.weight, .lora_down.weight, .alpha

diffusers mixes its names with PEFT's. The scale comes from `lora_scales`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from probex_jax.errors import ProbexError
from probex_jax.model_files.layers import MATRIX_DTYPES, LayerInfo
from probex_jax.model_files.lora_names import canonical
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import leads_out, quoted

# How a factor's name ends: which of the two it is, and in PEFT the adapter's name.
_ENDINGS = (
    (re.compile(r"(.+)\.lora\.(up|down)\.weight"), "diffusers"),
    (re.compile(r"(.+)\.processor\.(to_(?:q|k|v|out))_lora\.(up|down)\.weight"), "diffusers"),
    (re.compile(r"(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight"), "peft"),
    (re.compile(r"(.+)\.lora_(up|down)\.weight"), "kohya"),
)
# AdaLoRA: its update has a diagonal matrix between the factors.
_DIAGONAL = (".lora_E", ".lora_E.default")
_UNKNOWN_MODULE = "a LoRA of no known module"
_ALPHA = ".alpha"
_MIDDLE, _BESIDE_MIDDLE = ".lora_mid.weight", (".lora_up.weight", ".lora_down.weight")


@dataclass(frozen=True)
class Factors:
    """The tensors of one LoRA layer.

    Args:
      up, down: names of its factors.
      path: their names without the endings.
      dialect: "diffusers", "peft" or "kohya".
      alpha: name of the tensor that holds alpha; "" if there is none.
    """

    up: str
    down: str
    path: str
    dialect: str
    alpha: str = ""


def pair_factors(
    tensors: Mapping[str, TensorInfo], where: str
) -> tuple[dict[str, Factors], dict[str, str]]:
    """Finds the LoRA layers of a file.

    Args:
      tensors: all tensors, by name.
      where: the file's name, for errors.

    Returns:
      Canonical name of each layer (`lora_names.canonical`) to its tensors; and name of each adapter
      tensor that is not read, to the reason.

    Raises:
      ProbexError: if a factor lacks the other, or a layer has two pairs.
    """
    halves: dict[tuple[str, str], dict[str, str]] = {}
    unread = dict.fromkeys(_of_three(tensors), "of an adapter that is no LoRA of two factors")
    for name in (each for each in tensors if each not in unread):
        found = _half(name)
        if found is not None:
            path, half, dialect = found
            names = halves.setdefault((path, dialect), {})
            if half in names:
                raise ProbexError(
                    f"{where}: LoRA {quoted(path)} has two {half} factors, {quoted(names[half])} "
                    f"and {quoted(name)}; one adapter a file is read"
                )
            names[half] = name
    pairs: dict[str, Factors] = {}
    for (path, dialect), names in halves.items():
        if len(names) < 2:
            [(half, name)] = names.items()
            other = "up" if half == "down" else "down"
            raise ProbexError(
                f"{where}: LoRA {quoted(path)} has {quoted(name)}, the {half} factor, without the "
                f"{other} one; expected both factors"
            )
        alpha = path + _ALPHA if path + _ALPHA in tensors else ""
        layer = canonical(path)
        has_diagonal = any(path + end in tensors for end in _DIAGONAL)
        if layer is None or has_diagonal:
            reason = "of an AdaLoRA, which is not read" if has_diagonal else _UNKNOWN_MODULE
            unread |= dict.fromkeys(filter(None, (*names.values(), alpha)), reason)
            continue
        if leads_out(layer):
            raise ProbexError(f"{where}: layer {quoted(layer)}: the name leads out of a folder")
        if layer in pairs:
            raise ProbexError(f"{where}: two LoRAs are of layer {quoted(layer)}")
        pairs[layer] = Factors(names["up"], names["down"], path, dialect, alpha)
    return pairs, unread


def _of_three(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The tensors of updates with a third factor in the middle, as LyCORIS writes for kernels."""
    paths = [name.removesuffix(_MIDDLE) for name in tensors if name.endswith(_MIDDLE)]
    names = (path + end for path in paths for end in (*_BESIDE_MIDDLE, _MIDDLE, _ALPHA))
    return [name for name in names if name in tensors]


def _half(name: str) -> tuple[str, str, str] | None:
    """The layer's path, which factor a tensor is, and the dialect; None for other tensors."""
    for ending, dialect in _ENDINGS:
        match = ending.fullmatch(name)
        if match is None:
            continue
        path, *module, half = match.groups()
        if module:  # attention processors, in diffusers' first format
            path += f".{module[0]}" + (".0" if module[0] == "to_out" else "")
        return path, {"A": "down", "B": "up"}.get(half, half), dialect
    return None


def as_lora(layer: str, up: TensorInfo, down: TensorInfo, where: str) -> LayerInfo | str:
    """The layer that two factors make, or the reason why they are not read.

    For a convolution, `down` is [R, I, k...], `up` is [O, R, 1...] and the matrix is [O, I·k...].

    Raises:
      ProbexError: if the ranks of the factors disagree.
    """
    for tensor in (up, down):
        if tensor.dtype not in MATRIX_DTYPES:
            return f"a LoRA of {tensor.dtype}, which is not read"
        if len(tensor.shape) < 2:
            return f"a {len(tensor.shape)}-dimensional LoRA, which is not read"
        if 0 in tensor.shape:
            return "empty"
    if math.prod(up.shape[2:]) != 1:
        return "a LoRA whose up factor is a convolution, which is not read"
    (rows, rank, *_), (rank_down, *columns) = up.shape, down.shape
    if rank != rank_down:
        raise ProbexError(
            f"{where}: LoRA {quoted(layer)}: its factors disagree in rank: up is {rows}x{rank}, "
            f"down is {rank_down}x{math.prod(columns)}"
        )
    return LayerInfo((rows, math.prod(columns)), up.dtype, "lora", rank)
